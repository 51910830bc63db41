import pytest
import torch
from tiny_pipeline import save_tiny_clip
from torch import nn

from dfkd.bank.format import Block
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.diffusion import fidelity
from dfkd.diffusion.image_variations import clip_input
from dfkd.errors import UserError
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings

INFO = DatasetInfo(
    name="tiny", classes=["a", "b", "c"], image_size=4, channels=1, mean=[0.25], std=[0.5], crop_padding=0, flip=False
)
CPU = Runtime(torch.device("cpu"), "reference", torch.float32, False)


class Pixels(nn.Module):
    """A teacher whose penultimate features are the pixels themselves."""

    def forward(self, x, return_features=False):
        logits = x.flatten(1)[:, :3]
        return (logits, [x, x.flatten(1)]) if return_features else logits


def block(labels, cosines, variations, parents):
    count = len(labels)
    scores = {"cosine": torch.tensor(cosines), "variation": torch.tensor(variations, dtype=torch.float32)}
    return Block(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.tensor(labels), scores, torch.tensor(parents))


def test_cosine_of_hand_made_vectors():
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[2.0, 0.0], [1.0, 0.0], [4.0, 3.0], [-5.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(fidelity.cosine(first, second), torch.tensor([1.0, 0.5**0.5, 0.96, -1.0, 0.0]))


def test_the_example_of_the_paper():
    """DDA's figure: at the threshold of this project 0.83 and 0.76 pass, 0.45 fails."""
    verdict = fidelity.judge(torch.tensor([[0.83, 0.76, 0.45]]), 0.7)
    assert verdict.kept.tolist() == [[True, True, False]]
    assert verdict.itself.tolist() == [False]


def test_a_parent_without_survivors_stands_for_itself():
    verdict = fidelity.judge(torch.tensor([[0.1, 0.69], [0.71, 0.2], [0.7, -1.0]]), 0.7)
    assert verdict.kept.tolist() == [[False, False], [True, False], [True, False]]
    assert verdict.itself.tolist() == [True, False, False]


def test_report_counts_rates_and_dropped_ids():
    accepted = [block([0, 0, 1], [0.9, 0.8, 1.0], [0, 1, -1], [10, 10, 11]), block([1], [0.95], [1], [12])]
    rejected = [block([1, 1], [0.3, -0.18], [0, 1], [11, 11]), block([1], [0.1], [0], [12])]
    report = fidelity.report("bank-diffusion", 0.7, INFO.classes, accepted, rejected)
    assert (report["made"], report["accepted"], report["represented_by_themselves"]) == (6, 3, 1)
    assert report["accept_rate"] == 0.5
    assert report["accept_rate_per_class"] == {"a": 1.0, "b": 0.25, "c": None}
    assert report["dropped"] == [[11, 0], [11, 1], [12, 0]]
    histogram = report["histogram"]
    assert histogram["edges"][0] == -1
    assert histogram["edges"][-1] == 1
    assert len(histogram["edges"]) == fidelity.BINS + 1
    assert sum(histogram["accepted"]) == 3
    assert sum(histogram["rejected"]) == 3
    assert histogram["rejected"][16] == 1  # -0.18 lies in [-0.2, -0.15)


def test_report_of_nothing():
    report = fidelity.report("none", 0.7, INFO.classes, [], [])
    assert report["accept_rate"] is None
    assert report["dropped"] == []
    assert report["made"] == 0


def test_plot_has_equal_bytes_for_equal_reports(tmp_path):
    full = fidelity.report("bank-diffusion", 0.7, INFO.classes, [block([0], [0.9], [0], [1])], [block([1], [0.3], [0], [2])])
    empty = fidelity.report("none", 0.7, INFO.classes, [], [])
    for name, report in (("a", full), ("b", full), ("c", empty)):
        fidelity.plot(report, tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert a.startswith(b"\x89PNG")


def test_teacher_embedding_is_the_penultimate_feature_of_the_normalised_image():
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8)
    embedding, confidence = fidelity.Judge(Pixels(), INFO, AugmentSettings(), CPU)(images)
    x = normalise(to_unit(images), INFO).flatten(1)
    torch.testing.assert_close(embedding, x)
    torch.testing.assert_close(confidence, x[:, :3].softmax(1).max(1).values)


def test_clip_embedding(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    judge = fidelity.Judge(Pixels(), INFO, AugmentSettings(embedding="clip", clip=str(folder)), CPU)
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    embedding, confidence = judge(images)
    with torch.no_grad():
        torch.testing.assert_close(embedding, judge.clip(clip_input(images, 32)).image_embeds)
    assert embedding.shape == (3, 32)
    assert confidence.shape == (3,)


def test_clip_weights_absent_without_network():
    settings = AugmentSettings(embedding="clip")
    with pytest.raises(UserError, match=r"augment.clip: the weights of openai/clip-vit-base-patch32 .*embedding: teacher"):
        fidelity.Judge(Pixels(), INFO, settings, CPU)
