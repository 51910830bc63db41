import json

import pytest
import torch
from tiny_pipeline import save_tiny_pipeline, save_tiny_taesd

from dfkd.datasets.info import DatasetInfo
from dfkd.diffusion.backends import create_backend
from dfkd.diffusion.image_variations import SCHEDULERS, bank_output, check_not_blank, clip_input
from dfkd.errors import UserError
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings, ImageVariationsSettings

INFO = DatasetInfo(
    name="tiny", classes=["a", "b"], image_size=8, channels=3, mean=[0.5] * 3, std=[0.5] * 3, crop_padding=0, flip=False
)
GREY = INFO.model_copy(update={"channels": 1, "mean": [0.5], "std": [0.5]})
CPU = Runtime(torch.device("cpu"), "reference", torch.float32, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    return save_tiny_taesd(tmp_path_factory.mktemp("taesd"))


def backend(folder, info=INFO, seed=0, **changes):
    own = {"model": str(folder), "decoder": "full", "steps": 2, "height": 16, "batch_size": 4} | changes
    return create_backend(AugmentSettings(backend="image-variations", seed=seed, image_variations=own), info, CPU)


def parents(info=INFO, count=5):
    images = torch.randint(0, 256, (count, *info.shape), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return images, torch.zeros(count, dtype=torch.int64), torch.arange(10, 10 + count)


def differs(first, second):
    return (first.int() - second.int()).abs().amax((1, 2, 3))


def test_an_image_depends_on_seed_id_and_variation_and_not_on_batch_or_order(folder):
    images, labels, ids = parents()
    whole = backend(folder).vary(images, labels, ids, 0)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = backend(folder, batch_size=2).vary(images[order], labels, ids[order], 0)
    assert int(differs(shuffled, whole[order]).max()) <= 1  # the last bit of a kernel may tip a floor
    alone = torch.cat([backend(folder).vary(images[i : i + 1], labels[:1], ids[i : i + 1], 0) for i in (1, 3)])
    assert int(differs(alone, whole[[1, 3]]).max()) <= 1
    assert int(differs(backend(folder).vary(images, labels, ids, 1), whole).min()) > 1
    assert int(differs(backend(folder, seed=1).vary(images, labels, ids, 0), whole).min()) > 1
    assert int(differs(backend(folder).vary(images, labels, ids + 5, 0), whole).min()) > 1


def test_same_seed_same_bytes(folder):
    images, labels, ids = parents(count=2)
    one = backend(folder)
    assert torch.equal(one.vary(images, labels, ids, 0), one.vary(images, labels, ids, 0))


def test_equal_noise_shows_the_parents_content(folder):
    images, labels, ids = parents(count=2)
    ids[1] = ids[0]
    assert int(differs(*backend(folder, guidance=7.5).vary(images, labels, ids, 0).unsqueeze(1)).max()) > 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs_and_is_the_one_asked_for(folder, name):
    images, labels, ids = parents(count=2)
    chosen = backend(folder, scheduler=name)
    assert type(chosen.pipeline.scheduler).__name__ == SCHEDULERS[name]
    together = chosen.vary(images, labels, ids, 0)
    alone = chosen.vary(images[1:], labels[1:], ids[1:], 0)
    assert int(differs(together[1:], alone).max()) <= 1


def test_settings_name_every_scheduler():
    assert set(ImageVariationsSettings.model_fields["scheduler"].annotation.__args__) == set(SCHEDULERS)


def test_small_decoder_replaces_the_models_own(folder, taesd):
    images, labels, ids = parents(count=2)
    small = backend(folder, decoder="taesd", taesd=str(taesd))
    assert type(small.pipeline.vae).__name__ == "AutoencoderTiny"
    made = small.vary(images, labels, ids, 0)
    assert made.shape == images.shape
    assert int(differs(made, backend(folder).vary(images, labels, ids, 0)).min()) > 1


def test_grey_bank(folder):
    images, labels, ids = parents(GREY, 2)
    made = backend(folder, GREY).vary(images, labels, ids, 0)
    colour = backend(folder).vary(images.expand(-1, 3, -1, -1), labels, ids, 0)
    assert made.shape == (2, 1, 8, 8)
    assert (made.float() - colour.float().mean(1, keepdim=True)).abs().max() <= 1


def test_preparation_is_the_model_cards():
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    prepared = clip_input(image, 224)
    assert prepared.shape == (1, 3, 224, 224)
    white = [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    torch.testing.assert_close(prepared[0, :, 100, 100], torch.tensor(white))
    # downwards it shows that there is no antialiasing: every ninth pixel is picked where a filter would give the mean
    stripes = torch.zeros(1, 3, 8, 72, dtype=torch.uint8)
    stripes[..., ::2] = 255
    torch.testing.assert_close(clip_input(stripes, 8)[0, 0, 0, ::2], torch.full((4,), white[0]))


def test_output_is_averaged_over_areas_and_floored():
    big = torch.zeros(1, 3, 16, 16)
    big[0, 0, :2, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.5]])
    assert bank_output(big, INFO)[0, 0, 0, 0] == int(255 * 0.625)
    assert bank_output(big, INFO)[0, 1:].max() == 0
    assert bank_output(big, GREY)[0, 0, 0, 0] == int(255 * 0.625 / 3)


@pytest.mark.parametrize("value", [0.0, 0.7, float("nan")])
def test_blank_image_is_an_error(value):
    images = torch.rand(3, 3, 8, 8)
    check_not_blank(images, torch.tensor([5, 6, 7]), 0)
    images[1] = value
    with pytest.raises(UserError, match="variation 2 of image 6 came out blank"):
        check_not_blank(images, torch.tensor([5, 6, 7]), 2)


def test_blacked_out_image_stops_the_back_end(folder, monkeypatch):
    images, labels, ids = parents(count=2)
    chosen = backend(folder)
    monkeypatch.setattr(chosen.pipeline, "run_safety_checker", lambda image, *_: (torch.full_like(image, -1.0), None))
    with pytest.raises(UserError, match="image 10 came out blank"):
        chosen.vary(images, labels, ids, 0)


def test_safety_checker_is_off(folder):
    pipeline = backend(folder).pipeline
    assert pipeline.safety_checker is None
    assert pipeline.config.requires_safety_checker is False


def test_absent_weights_without_network_are_one_sentence(taesd):
    message = (
        r"augment.image_variations.model: the weights of lambdalabs/sd-image-variations-diffusers, revision v2.0, are not in "
        r".*hf download lambdalabs/sd-image-variations-diffusers --revision v2.0.*local folder.*bank-diffusion"
    )
    with pytest.raises(UserError, match=message):
        backend("lambdalabs/sd-image-variations-diffusers")
    with pytest.raises(UserError, match=r"augment.image_variations.taesd: the weights of no/such-decoder are not in"):
        backend("lambdalabs/sd-image-variations-diffusers", decoder="taesd", taesd="no/such-decoder")


def test_local_folder_absent_or_damaged(tmp_path, folder):
    with pytest.raises(UserError, match="no such folder"):
        backend(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model: the weights of the folder .* cannot be loaded"):
        backend(tmp_path)
    broken = save_tiny_pipeline(tmp_path / "broken")
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        backend(broken)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionImageVariationPipeline"


def test_height_below_the_banks_size_is_refused(folder):
    with pytest.raises(UserError, match="choose at least 32"):
        backend(folder, INFO.model_copy(update={"image_size": 32}), height=16)
