"""The contrast with memory banks: the published code's values, the draw of partners, resumption."""

import math

import pytest
import torch
from golden import ES, ET, det
from pydantic import ValidationError
from stopping import stop_after
from torch.nn import functional as F

from dfkd.datasets.prepared import read_split
from dfkd.distillation import distill as stage
from dfkd.distillation.objective import Batch
from dfkd.distillation.store import ImageStore
from dfkd.distillation.zoo.crd import CRD, MemoryBanks, draw, hashed, nce, similarities
from dfkd.errors import UserError
from dfkd.methods import CRDKDSettings, CRDSettings
from dfkd.models import build_model
from dfkd.progress import Stopped

SMALL = {
    "precision": "reference",
    "epochs": 2,
    "kd_steps": 4,
    "batch_size": 30,
    "milestones": [1],
    "negatives": 50,
    "crd_dim": 8,
}
ROWS = torch.tensor([2, 7, 11, 19])
INDEX = torch.tensor([[2, 3, 5, 7, 9, 11, 13], [7, 8, 10, 12, 14, 16, 18], [11, 12, 14, 16, 18, 0, 2], [19, 0, 2, 4, 6, 8, 10]])
ES_MAP = (det((8, 16), 0.21, 0.1), 0.1 * torch.sin(0.5 * torch.arange(8, dtype=torch.float64) + 0.2))
ET_MAP = (det((8, 16), 0.25, 0.3), 0.1 * torch.sin(0.6 * torch.arange(8, dtype=torch.float64) + 0.4))


def golden_banks(temperature):
    banks = MemoryBanks(20, 8, temperature, 0.5).double()
    banks.student.copy_(F.normalize(det((20, 8), 0.33, 0.2), dim=1))
    banks.teacher.copy_(F.normalize(det((20, 8), 0.43, 0.6), dim=1))
    return banks


def embedded():
    parts = [value.clone().requires_grad_() for value in (ES, *ES_MAP, ET, *ET_MAP)]
    ours, theirs = (F.normalize(F.linear(*group), dim=1) for group in (parts[:3], parts[3:]))
    return parts, ours, theirs


def naive(banks, ours, theirs, constants):
    """The loss row by row, with gathered copies of the rows, as the formula stands."""
    total, c = 0.0, 6 / 20
    for side, (anchors, bank) in enumerate(((ours, banks.teacher), (theirs, banks.student))):
        for anchor, row in zip(anchors, INDEX, strict=True):
            ratio = torch.exp(bank[row] @ anchor / banks.temperature) / constants[side]
            total = total - torch.log(ratio[0] / (ratio[0] + c + 1e-7)) / 4
            total = total - sum(torch.log(c / (value + c + 1e-7)) for value in ratio[1:]) / 4
    return total


def test_two_calls_are_those_of_the_published_code():
    banks = golden_banks(torch.tensor(0.07).double().item())  # held as float32 there
    for wanted in (8.05702131758879, 6.010069626671562):
        parts, ours, theirs = embedded()
        before = [banks.student.clone(), banks.teacher.clone()]
        loss = banks.contrast(ours, theirs, INDEX)
        assert loss.item() == pytest.approx(wanted, rel=1e-9)
        assert banks.constants.tolist() == pytest.approx([34.16420463, 115.57236938], rel=1e-7)  # of the first, then frozen
        gradients = torch.autograd.grad(loss, parts, retain_graph=True)
        again = torch.autograd.grad(naive(banks, ours, theirs, banks.constants), parts)
        for own, other in zip(gradients, again, strict=True):
            assert torch.allclose(own, other, rtol=1e-10, atol=1e-12)
        banks.renew(ROWS, ours.detach(), theirs.detach())
        for old, new, fresh in zip(before, (banks.student, banks.teacher), (ours, theirs), strict=True):
            others = [row for row in range(20) if row not in ROWS]
            assert torch.equal(old[others], new[others])
            assert torch.allclose(new[ROWS], F.normalize((old[ROWS] + fresh.detach()) / 2, dim=1))
    exact = golden_banks(0.07)
    assert exact.contrast(*embedded()[1:], INDEX).item() == pytest.approx(8.057021333964531, rel=1e-12)


def test_blocks_change_nothing():
    anchors, bank = det((4, 8), 0.3, 0.1), det((20, 8), 0.5, 0.2)
    whole = torch.stack([bank[row] @ anchor for anchor, row in zip(anchors, INDEX, strict=True)])
    for block in (3, 7, 20, 100):
        assert torch.allclose(similarities(anchors, bank, INDEX, block), whole)
    labels, seeds = torch.arange(50) % 3, torch.tensor([5, 2**60])
    drawn = [draw(labels, torch.tensor([0, 2]), seeds, 11, same=False, block=block).sort(1)[0] for block in (4, 13, 50)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_partners_are_of_the_right_classes_and_differ():
    labels = torch.arange(90) % 3
    own, seeds = torch.tensor([0, 1, 2, 2]), torch.arange(4)
    negatives = draw(labels, own, seeds, 40, same=False)
    assert (labels[negatives] != own[:, None]).all()
    assert all(len(set(row)) == 40 for row in negatives.tolist())
    assert len({tuple(sorted(row)) for row in negatives.tolist()}) == 4
    assert all(len(set(row)) == 60 for row in draw(labels, own, seeds, 60, same=False).tolist())
    assert torch.equal(labels[draw(labels, own, seeds, 1, same=True)][:, 0], own)


def test_every_image_is_drawn_equally_often():
    labels = torch.cat([torch.zeros(10), torch.ones(40)]).long()
    seeds = torch.randint(2**62, (4000,), generator=torch.Generator().manual_seed(0))
    drawn = draw(labels, torch.zeros(4000, dtype=torch.int64), seeds, 10, same=False)
    counts = drawn.flatten().bincount(minlength=50).double()
    assert counts[:10].sum() == 0
    deviations = (counts[10:] - 1000) / math.sqrt(4000 * 0.25 * 0.75)
    assert deviations.abs().max() < 4.5  # 40 draws of a standard normal
    assert 0.4 < deviations.square().mean() < 1.8
    together = (drawn == 10).any(1) & (drawn == 11).any(1)  # neighbours are drawn together no more than any two
    assert together.double().mean().item() == pytest.approx(10 * 9 / (40 * 39), abs=0.02)
    assert len(hashed(torch.arange(10000)).unique()) == 10000


def test_noise_costs_what_the_formula_says():
    ratios = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    wanted = -(math.log(0.5 / (1 + 1e-7)) + 2 * math.log(0.5 / (0.75 + 1e-7)))
    assert nce(ratios, 0.5).item() == pytest.approx(wanted)


@pytest.fixture
def made(tiny_data, reference):
    """An objective on the training images, before its first step."""

    def make(**changes):
        torch.manual_seed(3)
        settings = CRDSettings(**(SMALL | changes))
        teacher, student = build_model("wrn102", 3, 1, 8).eval().requires_grad_(False), build_model("wrn101", 3, 1, 8)
        objective = CRD(teacher, student, tiny_data.info, settings, reference)
        store = ImageStore(200, (1, 8, 8), reference)  # larger than what is in it
        store.append(*read_split(tiny_data.data, "train"))
        objective.begin(store)
        return objective

    return make


def batch_of(objective, rows):
    return Batch(objective.store.images[rows].float() / 255, objective.store.labels[rows], rows)


def test_a_step_trains_both_maps_and_renews_the_rows_of_its_batch(made):
    objective = made(ce=0.5, kd=2.0, crd=0.3)
    assert objective.notes == {"heads": f"{64 * 8 + 8 + 128 * 8 + 8} parameters trained with the student"}
    before = {name: value.clone() for name, value in (objective.memory.state_dict() | objective.heads.state_dict()).items()}
    assert len(objective.memory.student) == 120
    assert before["student"].abs().max() < math.sqrt(3 / 8)
    loss, ce, kd, crd = objective.step(batch_of(objective, torch.arange(30))).tolist()
    assert loss == pytest.approx(0.5 * ce + 2 * kd + 0.3 * crd, rel=1e-5)
    after = objective.memory.state_dict() | objective.heads.state_dict()
    for bank in ("student", "teacher"):
        assert torch.equal(before[bank][30:], after[bank][30:])
        assert not torch.isclose(before[bank][:30], after[bank][:30]).all(1).any()
        assert not torch.equal(before[f"{bank}.weight"], after[f"{bank}.weight"])
    assert (objective.memory.constants > 0).all()


def test_the_positive_is_the_image_or_one_of_its_class(made):
    rows = torch.arange(0, 90, 3)
    exact, relax = (made(positive=mode) for mode in ("exact", "relax"))
    batch = batch_of(exact, rows)
    assert torch.equal(exact.partners(batch)[:, 0], rows)
    labels = exact.store.labels
    for objective in (exact, relax):
        partners = objective.partners(batch)
        assert torch.equal(labels[partners[:, 0]], batch.labels)
        assert (labels[partners[:, 1:]] != batch.labels[:, None]).all()
    assert not torch.equal(relax.partners(batch)[:, 0], rows)


def test_more_negatives_than_there_are_is_refused(made):
    made(negatives=80)
    with pytest.raises(UserError, match="negatives 81, but the largest class leaves 80 images of others among 120; set"):
        made(negatives=81)


@pytest.mark.parametrize("transfer_set", ["dataset:cifar100", "folder:pictures"])
def test_images_without_labels_are_refused(transfer_set):
    with pytest.raises(ValidationError, match="crd needs labels, and the images of"):
        CRDSettings(transfer_set=transfer_set)
    assert CRDSettings(transfer_set="bank:init").labelled
    assert (CRDSettings().ce, CRDSettings().kd, CRDKDSettings().kd, CRDKDSettings().crd) == (1.0, 0.0, 1.0, 0.8)


def test_a_stopped_run_ends_with_the_same_bytes(tiny_teacher, tiny_data, reference, tmp_path, monkeypatch):
    settings = CRDKDSettings(**SMALL, positive="relax")

    def run(name):
        output = tmp_path / name / "student.safetensors"
        stage.distill(
            tiny_teacher, [], "wrn101", tiny_data.test, settings, 0, output, tmp_path / f"{name}.state", reference,
            "kd-crd-kd", tiny_data.data,
        )  # fmt: skip
        return [(output.parent / file).read_bytes() for file in ("student.safetensors", "best.safetensors", "history.csv")]

    whole = run("whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stage, 6)
        with pytest.raises(Stopped):
            run("broken")
    assert not (tmp_path / "broken" / "student.safetensors").exists()
    assert run("broken") == whole
