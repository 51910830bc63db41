"""BN statistics with a memory, as Fast and NAYER use them."""

import pytest
import torch
from torch import nn

from dfkd.errors import UserError
from dfkd.models import build_model
from dfkd.synthesis.priors import BatchStatistics, MovingStatistics


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()


def images(seed):
    return torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(statistics, network, x):
    x = x.clone().requires_grad_()
    with statistics.recording():
        network(x)
    loss = statistics.loss()
    return loss.item(), torch.autograd.grad(loss, x)[0]


def test_before_the_first_update_it_is_the_plain_loss(network):
    plain = value_and_gradient(BatchStatistics(network), network, images(1))
    moving = value_and_gradient(MovingStatistics(network, 0.9), network, images(1))
    assert moving[0] == plain[0]
    assert torch.equal(moving[1], plain[1])


def test_at_momentum_nine_tenths_the_gradient_is_ten_times_smaller(network):
    statistics = MovingStatistics(network, 0.9)
    plain, gradient = value_and_gradient(statistics, network, images(1))
    statistics.update()
    again, smaller = value_and_gradient(statistics, network, images(1))  # of the same batch: the mixed statistics are its own
    assert again == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(smaller, gradient / 10, rtol=1e-3, atol=1e-8)


def test_the_loss_is_of_the_mixed_statistics_and_the_memory_an_exponential_mean(network):
    statistics, remembered = MovingStatistics(network, 0.9), None
    for seed in (1, 2, 3):
        found, _ = value_and_gradient(statistics, network, images(seed))
        expected, own, h = 0.0, [], images(seed)
        with torch.no_grad():
            for layer in network:
                if isinstance(layer, nn.BatchNorm2d):
                    own.append((h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)))
                    mean, var = own[-1]
                    if remembered is not None:
                        old_mean, old_var = remembered[len(own) - 1]
                        mean, var = 0.1 * mean + 0.9 * old_mean, 0.1 * var + 0.9 * old_var
                    expected += ((layer.running_mean - mean).norm() + (layer.running_var - var).norm()).item()
                h = layer(h)
        assert found == pytest.approx(expected, rel=1e-4)
        statistics.update()
        if remembered is None:
            remembered = own
        else:
            remembered = [(0.9 * a + 0.1 * c, 0.9 * b + 0.1 * d) for (a, b), (c, d) in zip(remembered, own, strict=True)]


def test_momentum_zero_is_the_plain_loss_for_ever(network):
    statistics = MovingStatistics(network, 0.0)
    value_and_gradient(statistics, network, images(1))
    statistics.update()
    plain = value_and_gradient(BatchStatistics(network), network, images(2))
    found = value_and_gradient(statistics, network, images(2))
    assert found[0] == pytest.approx(plain[0], rel=1e-6)
    torch.testing.assert_close(found[1], plain[1])


def test_state_survives(network):
    one, other = MovingStatistics(network, 0.9), MovingStatistics(network, 0.9)
    other.load_state_dict(one.state_dict())  # of nothing yet
    value_and_gradient(one, network, images(1))
    one.update()
    other.load_state_dict(one.state_dict())
    assert value_and_gradient(other, network, images(2))[0] == value_and_gradient(one, network, images(2))[0]


def test_a_paused_forward_is_not_recorded(network):
    statistics = BatchStatistics(network)
    with statistics.recording():
        network(images(1))
        with statistics.paused():
            network(images(2))
        mixed = statistics.loss().item()
    assert mixed == value_and_gradient(statistics, network, images(1))[0]


def test_a_network_without_batchnorm_is_refused():
    with pytest.raises(UserError, match="BatchNorm layers; the teacher \\(LeNet\\) has none"):
        BatchStatistics(build_model("lenet5", 10, 1, 32))
