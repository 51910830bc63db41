"""The generators: size, range, precision, and their re-initialisation."""

import math

import pytest
import torch
from torch import nn

from dfkd.errors import UserError
from dfkd.models import count_parameters
from dfkd.models.generators import GENERATORS, Generator, GeneratorA, LargeGenerator, reset_n02


@pytest.mark.parametrize(
    ("name", "latent_size", "image_size", "parameters"),
    [
        ("small", 256, 32, 2_328_899),
        ("small", 256, 64, 8_644_931),
        ("large", 256, 32, 4_581_955),
        ("large", 512, 32, 8_776_259),
    ],
)
def test_size_equals_the_published_one(name: str, latent_size: int, image_size: int, parameters: int) -> None:
    model = GENERATORS[name](latent_size, 3, image_size)
    assert count_parameters(model) == parameters
    with torch.no_grad():
        assert model(torch.zeros(2, latent_size)).shape == (2, 3, image_size, image_size)


@pytest.mark.parametrize(("latent_size", "channels", "parameters"), [(100, 1, 1_049_985), (256, 3, 2_329_091)])
def test_dfads_generator_has_the_published_size(latent_size: int, channels: int, parameters: int) -> None:
    model = GeneratorA(latent_size, channels, 32)
    assert count_parameters(model) == parameters
    assert "dfad" not in GENERATORS  # its images are not in [0, 1]


def test_dfads_generator_makes_normalised_images() -> None:
    torch.manual_seed(0)
    model = GeneratorA(16, 3, 16, width=8)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    z = torch.randn(32, 16)
    images = model(z)
    assert images.shape == (32, 3, 16, 16)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(3), rtol=1e-2, atol=0)
    whitened = torch.tanh(model.body(model.start(z)))
    mean, variance = whitened.mean((0, 2, 3), keepdim=True), whitened.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(images, (whitened - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(z).dtype == torch.float32


@pytest.mark.parametrize("kind", [Generator, LargeGenerator])
@pytest.mark.parametrize(("channels", "image_size"), [(1, 28), (3, 16)])
def test_images_lie_in_the_unit_interval(kind: type[Generator], channels: int, image_size: int) -> None:
    torch.manual_seed(0)
    model = kind(32, channels, image_size, width=16)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # spread the outputs, so that a missing sigmoid shows
    images = model(torch.randn(8, 32))
    assert images.shape == (8, channels, image_size, image_size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1


@pytest.mark.parametrize("image_size", [0, 2, 30, 33])
def test_other_sizes_are_refused(image_size: int) -> None:
    with pytest.raises(UserError, match=f"image size {image_size}: .*multiple of 4"):
        Generator(16, 3, image_size)


def test_images_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    model = Generator(16, 3, 16, width=8)
    z = torch.randn(4, 16)
    with torch.no_grad():
        expected = model(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = model(z)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=0.02)


def test_reset_draws_the_stated_distributions() -> None:
    torch.manual_seed(0)
    model = LargeGenerator(256, 3, 32)
    model(torch.randn(4, 256))
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any(buffer.any() for name, buffer in statistics.items() if name.endswith("running_mean"))
    reset_n02(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            error = 5 * 0.02 / math.sqrt(layer.weight.numel())
            assert layer.weight.mean().item() == pytest.approx(mean, abs=error)
            assert layer.weight.std().item() == pytest.approx(0.02, abs=error)
            assert layer.bias is None or not layer.bias.any()
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


def test_reset_reaches_transposed_convolutions_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(64, 32, 4), nn.BatchNorm1d(7))
    reset_n02(model)
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model[0].bias.any()
    assert (model[1].weight == 1).all()


def test_reset_is_the_same_in_every_memory_format_and_keeps_the_tensors() -> None:
    plain, last = Generator(16, 3, 16), Generator(16, 3, 16).to(memory_format=torch.channels_last)
    pointers = [parameter.data_ptr() for parameter in last.parameters()]
    for model in (plain, last):
        torch.manual_seed(5)
        reset_n02(model)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), last.parameters(), strict=True))
    assert [parameter.data_ptr() for parameter in last.parameters()] == pointers
    assert last.body[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.grad_fn is None and parameter.requires_grad for parameter in last.parameters())


def test_channels_last_makes_the_same_images() -> None:
    torch.manual_seed(0)
    model = Generator(32, 3, 32, width=16)
    z = torch.randn(4, 32)
    with torch.no_grad():
        expected = model.eval()(z)
        found = model.to(memory_format=torch.channels_last)(z)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
