import pytest
from golden import ZS, ZT

from dfkd.synthesis.priors import kl_divergence


def test_the_imitation_is_that_of_the_published_code():
    assert kl_divergence(ZS, ZT, 4.0).item() == pytest.approx(2.397322816876209, rel=1e-6)
