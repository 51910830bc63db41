import math

import pytest
import torch
from golden import det

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.semckd import Calibration, SemCKD
from dfkd.methods import SemCKDSettings
from dfkd.models import build_model

SMALL = {"precision": "reference", "batch_size": 8, "kd_steps": 2, "epochs": 1}


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_loss_is_the_formula_image_by_image():
    torch.manual_seed(0)
    ours = [det((8, 4, 8, 8), 0.11, 0.2), det((8, 6, 4, 4), 0.23, 0.4)]
    theirs = [det((8, 5, 4, 4), 0.13, 0.3), det((8, 3, 8, 8), 0.29, 0.5), det((8, 7, 2, 2), 0.41, 0.7)]
    shapes = [[tuple(value.shape[1:]) for value in maps] for maps in (ours, theirs)]
    heads = Calibration(*shapes, 8).double()

    def compared(head, maps):
        gram = torch.tensor([[(a * b).sum().item() for b in maps] for a in maps], dtype=torch.float64)
        rows = head(gram)
        return [row / row.square().sum().sqrt() for row in rows]

    queries = [compared(head, maps) for head, maps in zip(heads.queries, ours, strict=True)]
    keys = [compared(head, maps) for head, maps in zip(heads.keys, theirs, strict=True)]
    total = 0.0
    for b in range(8):
        for i, f_s in enumerate(ours):
            scores = [math.exp((queries[i][b] @ key[b]).item()) for key in keys]
            for j, f_t in enumerate(theirs):
                height = min(f_s.shape[2], f_t.shape[2])
                small = torch.nn.functional.adaptive_avg_pool2d(f_s, height)
                wanted = torch.nn.functional.adaptive_avg_pool2d(f_t, height)
                distance = (heads.projections[i][j](small)[b] - wanted[b]).square().mean().item()
                total += scores[j] / sum(scores) * distance / (8 * 2)
    assert heads(ours, theirs).item() == pytest.approx(total, rel=1e-6)
    assert torch.allclose(heads.weights(ours, theirs).sum(2), torch.ones(8, 2, dtype=torch.float64))


def test_the_heads_are_those_of_the_published_code_without_the_layers_that_have_no_effect():
    shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]  # resnet32x4 to resnet8x4
    made = Calibration(shapes, shapes, 64)
    layers = 6 * ((64 * 32 + 32) + (32 * 16 + 16))
    assert size(made) == layers + sum(s * 2 * t + 36 * t * t + 2 * t * t + 8 * t for s, *_ in shapes for t, *_ in shapes)
    assert round(size(made) / 1e6, 1) == 10.2


def test_any_numbers_of_maps_meet_and_heads_learn(tiny_data, reference):
    torch.manual_seed(0)
    teacher, student = build_model("wrn102", 3, 1, 8).eval().requires_grad_(False), build_model("wrn101", 3, 1, 8)
    settings = SemCKDSettings(**SMALL, teacher_layers=["conv1", "block3"])
    objective = SemCKD(teacher, student, tiny_data.info, settings, reference)
    calibration = objective.heads["calibration"]
    assert (len(calibration.queries), len(calibration.keys)) == (3, 2)
    assert objective.notes == {"heads": f"{size(calibration)} parameters trained with the student"}
    before = [parameter.clone() for parameter in calibration.parameters()]
    batch = Batch(torch.randn(8, 1, 8, 8), torch.arange(8) % 3)
    loss, ce, kd, own = objective.step(batch).tolist()
    assert loss == pytest.approx(ce + kd + 400 * own, rel=1e-5)
    assert all(not torch.equal(old, new) for old, new in zip(before, calibration.parameters(), strict=True))
    with pytest.raises(ValueError, match="a batch of 7 images for heads of 8"):
        objective.step(Batch(batch.images[:7], batch.labels[:7]))


def test_the_layers_need_not_come_in_pairs():
    assert SemCKDSettings(student_layers=["a"], teacher_layers=["b", "c"]).teacher_layers == ["b", "c"]
    with pytest.raises(ValueError, match="greater than or equal to 4"):
        SemCKDSettings(batch_size=3)
