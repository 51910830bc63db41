import pytest
from golden import FS, FT

from dfkd.distillation.zoo.at import attention_loss


def test_the_loss_is_that_of_the_published_code():
    assert attention_loss(FS, FT).item() == pytest.approx(0.0012571758795396, abs=1e-12)
    assert attention_loss(FS[:1], FT[1:2]).item() == pytest.approx(0.0001393434589287, abs=1e-12)  # pooled to 4×4
    assert attention_loss(FT[1:2], FS[:1]).item() == pytest.approx(0.0001393434589287, abs=1e-12)


def test_maps_that_are_scaled_copies_cost_nothing():
    assert attention_loss(FS, [3 * value for value in FS]).item() == pytest.approx(0, abs=1e-15)
