import math

import pytest
import torch

from dfkd.checkpoint import Checkpoint
from dfkd.datasets.info import DatasetInfo
from dfkd.diffusion import bank_diffusion
from dfkd.diffusion.backends import create_backend, image_generators, image_noise
from dfkd.diffusion.bank_diffusion import BankDiffusion, build_unet, learning_rate
from dfkd.errors import UserError
from dfkd.history import History
from dfkd.progress import Stopped, StopRequest
from dfkd.provenance import Cost
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings, BankDiffusionSettings

INFO = DatasetInfo(
    name="bars", classes=["upright", "lying"], image_size=8, channels=1, mean=[0.5], std=[0.5], crop_padding=0, flip=True
)
CPU = Runtime(torch.device("cpu"), "reference", torch.float32, False)
OWN = {"channels": [8, 16], "train_steps": 6, "batch_size": 8, "sampling_steps": 10, "sampling_batch_size": 4, "lr": 1e-3}


def bars(count=32):
    """Class 0: an upright bar; class 1: a lying one; the place varies."""
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for i in range(count):
        place = 1 + (i // 2) % 5
        if labels[i]:
            images[i, 0, place : place + 2] = 230
        else:
            images[i, 0, :, place : place + 2] = 230
    return images, labels


def backend(seed=0, info=INFO, **changes) -> BankDiffusion:
    settings = AugmentSettings(backend="bank-diffusion", seed=seed, bank_diffusion=OWN | changes)
    return create_backend(settings, info, CPU)


def fit(folder, chosen, stop=None):
    cost = Cost()
    history = History(folder / "out" / "history.csv", folder / "out" / "tensorboard", "step")
    chosen.fit(*bars(), Checkpoint(folder, {"test": 1}), cost, StopRequest() if stop is None else stop, history)
    history.publish()
    return cost


class StopAfter(StopRequest):
    """A signal that arrives during step `steps` of the training, which asks once a step."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __bool__(self):
        self.steps -= 1
        self.signal = 15 if self.steps <= 0 else 0
        return self.signal != 0


def test_stopped_and_resumed_training_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(bank_diffusion, "ROWS", 3)  # of two steps each: the signal comes within the second
    whole, resumed = backend(), backend()
    assert fit(tmp_path / "whole", whole).optimiser_steps == 6
    with pytest.raises(Stopped):
        fit(tmp_path / "stopped", resumed, StopAfter(3))
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["state"]["step"] == 3
    torch.rand(7)  # another process has another random state
    again = backend()
    assert fit(tmp_path / "stopped", again).optimiser_steps == 6
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, again.ema.state_dict()[name]), name
    histories = [(tmp_path / name / "out" / "history.csv").read_text() for name in ("whole", "stopped")]
    assert histories[0] == histories[1]
    assert [row.split(",")[0] for row in histories[0].splitlines()] == ["step", "2", "4", "6"]
    images, labels = bars(4)
    assert torch.equal(*(b.vary(images, labels, torch.arange(4), 0) for b in (whole, again)))


def test_saving_at_every_step_changes_nothing(tmp_path, monkeypatch):
    seldom, often = backend(), backend()
    fit(tmp_path / "seldom", seldom)
    monkeypatch.setattr(bank_diffusion, "SAVE_SECONDS", -1)
    fit(tmp_path / "often", often)
    assert all(torch.equal(a, b) for a, b in zip(seldom.ema.parameters(), often.ema.parameters(), strict=True))


def test_trained_state_is_loaded_without_training(tmp_path):
    first = backend()
    fit(tmp_path, first)
    second = backend(seed=0)
    second._loss = None  # any training step would fail
    fit(tmp_path, second)
    assert all(torch.equal(a, b) for a, b in zip(first.ema.parameters(), second.ema.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.ema.parameters(), backend().ema.parameters(), strict=True))


def test_training_lowers_the_loss(tmp_path):
    chosen = backend(train_steps=40, lr=5e-3)
    images, labels = bars()

    def loss():
        with torch.no_grad():
            return sum(float(chosen._loss(images, labels, 10_000 + i)) for i in range(8)) / 8

    before = loss()
    fit(tmp_path, chosen)
    assert loss() < 0.6 * before


def test_variation_depends_on_seed_id_and_variation_and_not_on_batch_or_order(tmp_path):
    chosen = backend()
    fit(tmp_path, chosen)
    images, labels = bars(10)
    ids = torch.arange(10) * 3
    whole = chosen.vary(images, labels, ids, 0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = chosen.vary(images[order], labels[order], ids[order], 0)
    assert (shuffled.int() - whole[order].int()).abs().max() <= 1
    alone = chosen.vary(images[7:8], labels[7:8], ids[7:8], 0)
    assert (alone.int() - whole[7:8].int()).abs().max() <= 1
    assert torch.equal(chosen.vary(images, labels, ids, 0), whole)
    assert (chosen.vary(images, labels, ids, 1) != whole).any((1, 2, 3)).all()
    assert (chosen.vary(images, labels, ids + 1, 0) != whole).any((1, 2, 3)).all()


def test_strength_is_the_distance_to_the_parent_and_the_class_counts(tmp_path):
    fit(tmp_path, backend())
    images, labels = bars(16)
    distances = []
    for strength in (0.1, 0.4, 1.0):
        chosen = backend(strength=strength)
        fit(tmp_path, chosen)  # takes the trained weights over
        made = chosen.vary(images, labels, torch.arange(16), 0)
        distances.append(float((made.float() - images.float()).abs().mean()))
    assert distances[0] < distances[1] < distances[2]
    assert not torch.equal(chosen.vary(images, 1 - labels, torch.arange(16), 0), made)


def test_the_number_of_denoising_steps_follows_from_the_strength(monkeypatch):
    chosen = backend(strength=0.3)
    asked = []
    network = chosen._ema_unet
    monkeypatch.setattr(chosen, "_ema_unet", lambda x, t, **rest: asked.append(t) or network(x, t, **rest))
    images, labels = bars(2)
    chosen.vary(images, labels, torch.arange(2), 0)
    assert asked == [299, 199, 99]


def test_patches_are_folded_and_unfolded_without_loss():
    chosen = backend(patch=2, channels=[8, 16])
    x = torch.rand(3, 1, 8, 8)
    assert chosen._fold(x).shape == (3, 4, 4, 4)
    assert torch.equal(chosen._unfold(chosen._fold(x)), x)
    assert chosen.unet.config.in_channels == 4


@pytest.mark.parametrize(("size", "patch"), [(6, 1), (4, 2), (9, 3)])
def test_size_that_cannot_be_halved_is_refused(size, patch):
    with pytest.raises(UserError, match=f"images of {size} pixels cannot be halved at 3 levels of patch {patch}"):
        backend(info=INFO.model_copy(update={"image_size": size}), channels=[8, 8, 8], patch=patch)


@pytest.mark.parametrize(("channels", "patch", "fits"), [([8, 16], 2, False), ([12, 16], 2, True), ([32, 64], 4, False)])
def test_a_level_narrower_than_a_patch_is_refused(channels, patch, fits):
    info = INFO.model_copy(update={"image_size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3})
    if fits:
        backend(info=info, channels=channels, patch=patch)
        return
    with pytest.raises(
        UserError, match=f"the first of `channels`, {channels[0]}, is less than the {3 * patch**2} values of a patch"
    ):
        backend(info=info, channels=channels, patch=patch)


def test_groups_divide_every_width():
    for channels in ([4], [12, 20], [32, 64, 64], [256, 384]):
        unet = build_unet(BankDiffusionSettings(channels=channels), INFO)
        assert all(width % unet.config.norm_num_groups == 0 for width in channels)
        assert unet.config.norm_num_groups <= 32


def test_rate_warms_up_and_falls_to_zero():
    settings = BankDiffusionSettings(train_steps=1000, lr=1.0)
    rates = [learning_rate(step, settings) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 51)
    assert rates[50] == 1.0
    assert rates[1000] == pytest.approx(0)
    assert rates[525] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert [learning_rate(step, BankDiffusionSettings(train_steps=1, lr=1.0)) for step in (0, 1)] == [1.0, 0.0]


def test_weights_are_averaged_with_a_decay_that_grows():
    chosen = backend(ema=0.5)
    start = next(chosen.ema.parameters()).clone()
    with torch.no_grad():
        next(chosen.unet.parameters()).add_(1.0)
    chosen._average(0)  # decay 1/10
    torch.testing.assert_close(next(chosen.ema.parameters()), start + 0.9)
    chosen._average(1000)  # decay 0.5
    torch.testing.assert_close(next(chosen.ema.parameters()), start + 0.95)


def test_noise_is_keyed_by_image():
    one = image_noise((2, 3), image_generators(0, torch.tensor([4, 9]), 1))
    two = image_noise((2, 3), image_generators(0, torch.tensor([9, 4]), 1))
    assert torch.equal(one, two.flip(0))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, image_noise((2, 3), image_generators(1, torch.tensor([4, 9]), 1)))
