import math

import pytest
import torch
from torch import nn

from dfkd.synthesis.priors import BatchStatistics, channel_moments, kl_divergence, one_hot, random_labels, rotation_labels


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_the_sum_over_classes_times_temperature_squared(temperature):
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    assert kl_divergence(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-4)


def test_kl_at_high_temperature_is_half_the_centred_mse():
    student, teacher = logits(64, 10), logits(64, 10, seed=1)
    centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    assert kl_divergence(student, teacher, 200.0).item() == pytest.approx((centred**2).sum(1).mean().item() / 20, rel=1e-2)


def test_kl_gradient_reaches_both_sides():
    student, teacher = logits(4, 10).requires_grad_(), logits(4, 10, seed=1).requires_grad_()
    kl_divergence(student, teacher, 20.0).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad.abs().sum() > 0


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()


def test_bn_loss_is_zero_where_the_batch_has_the_running_statistics():
    model = network()
    x = torch.randn(8, 3, 9, 9)
    model.train()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model(x)
    model.eval()
    first = model[0](x)
    model[1].running_var = first.var((0, 2, 3), correction=0).detach()  # torch keeps the unbiased one
    second = model[3](model[2](model[1](first)))
    model[4].running_mean, model[4].running_var = second.mean((0, 2, 3)).detach(), second.var((0, 2, 3), correction=0).detach()
    statistics = BatchStatistics(model)
    with statistics.recording():
        model(x)
    assert statistics.loss().item() == pytest.approx(0, abs=1e-5)


def test_bn_loss_is_the_sum_of_unsquared_norms():
    model, x = network(), torch.randn(8, 3, 9, 9)
    expected = 0.0
    h = x
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = h.mean((0, 2, 3)), ((h - h.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))
            expected += (layer.running_mean - mean).norm().item() + (layer.running_var - var).norm().item()
        h = layer(h)
    statistics = BatchStatistics(model)
    with statistics.recording():
        model(x)
    assert statistics.loss().item() == pytest.approx(expected, rel=1e-5)


def test_bn_hooks_are_gone_after_recording():
    model = network()
    statistics = BatchStatistics(model)
    with statistics.recording():
        assert all(layer._forward_pre_hooks for layer in statistics.layers)
    assert not any(layer._forward_pre_hooks for layer in statistics.layers)


def test_one_hot_of_uniform_logits_is_log_k():
    assert one_hot(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


def test_rotation_labels_are_4y_plus_k_sample_major():
    assert rotation_labels(torch.tensor([0, 3])).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_random_labels_are_sorted_uniform():
    torch.manual_seed(0)
    labels = random_labels(10000, 10)
    assert torch.equal(labels, labels.sort().values)
    assert labels.bincount(minlength=10).min() > 850


def test_one_pass_moments_and_their_gradient_equal_the_plain_formula():
    torch.manual_seed(0)
    x = (torch.randn(16, 24, 9, 9) * 2 + 0.5).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 24)
    results = []
    for one_pass in (False, True):
        variance, mean = channel_moments(x, one_pass)
        (gradient,) = torch.autograd.grad((weights[0] * variance + weights[1] * mean**2).sum(), x)
        results.append((variance, mean, gradient))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)
