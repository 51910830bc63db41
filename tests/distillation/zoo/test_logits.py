"""Objectives on logits: KD, standardised logits, KDrefine, DKD."""

import math

import pytest
import torch
from golden import EXACT, ZS, ZT, Y
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.dkd import DKD, decoupled
from dfkd.distillation.zoo.standardised import KDrefine, LogitStd, standardise
from dfkd.methods import DKDSettings, KDrefineSettings, LogitStdSettings
from dfkd.models import build_model
from dfkd.synthesis.priors import kl_divergence


def made(objective, settings, tiny_data, reference):
    teacher, student = (build_model("wrn101", 3, 1, 8) for _ in range(2))
    return objective(teacher.eval().requires_grad_(False), student, tiny_data.info, settings, reference)


def test_the_imitation_is_that_of_the_published_code():
    assert kl_divergence(ZS, ZT, 4.0).item() == pytest.approx(2.397322816876209, **EXACT)


def test_kdrefine_is_that_of_the_published_code(tiny_data, reference):
    objective = made(KDrefine, KDrefineSettings(precision="reference"), tiny_data, reference)
    found = objective.summed(ZS, ZT, Batch(torch.empty(0), Y))
    assert found["ce"].item() == pytest.approx(2.368795951583158, **EXACT)
    assert found["kd"].item() == pytest.approx(2.602537184846091, **EXACT)
    assert found["loss"].item() == pytest.approx(2.579163061519797, **EXACT)


def test_kdrefine_of_2022_has_another_multiplier_and_the_biased_variance(tiny_data, reference):
    settings = KDrefineSettings(precision="reference", multiplier=4, variance="biased")
    found = made(KDrefine, settings, tiny_data, reference).summed(ZS, ZT, Batch(torch.empty(0), Y))
    normed = 4 * F.layer_norm(ZS, (10,), eps=1e-7)
    assert found["ce"].item() == pytest.approx(F.cross_entropy(normed, Y).item(), **EXACT)
    wanted = kl_divergence(normed, 4 * F.layer_norm(ZT, (10,), eps=1e-7), 4.0)
    assert found["kd"].item() == pytest.approx(wanted.item(), **EXACT)


def test_the_cross_entropy_is_of_raw_logits_where_the_imitation_alone_is_standardised(tiny_data, reference):
    batch = Batch(torch.empty(0), Y)
    half = made(KDrefine, KDrefineSettings(precision="reference", standardise="kd"), tiny_data, reference).summed(ZS, ZT, batch)
    assert half["ce"].item() == pytest.approx(F.cross_entropy(ZS, Y).item(), **EXACT)
    assert half["kd"].item() == pytest.approx(2.602537184846091, **EXACT)
    found = made(LogitStd, LogitStdSettings(precision="reference"), tiny_data, reference).summed(ZS, ZT, batch)
    ours, theirs = ((rows - rows.mean(1)[:, None]) / rows.std(1)[:, None] for rows in (ZS, ZT))
    kl = sum(
        p * (math.log(p) - math.log(q))
        for t, s in zip((theirs / 2).softmax(1).tolist(), (ours / 2).softmax(1).tolist(), strict=True)
        for p, q in zip(t, s, strict=True)
    )
    assert found["kd"].item() == pytest.approx(kl, rel=1e-6)  # T² / B = 4 / 4
    assert found["loss"].item() == pytest.approx(0.1 * F.cross_entropy(ZS, Y).item() + 9 * kl, rel=1e-6)


@pytest.mark.parametrize("biased", [False, True])
def test_standardised_logits_know_neither_scale_nor_shift(biased):
    rows = standardise(ZS, 2.0, biased)
    assert rows.mean(1).abs().max() < 1e-12
    assert rows.std(1, correction=0 if biased else 1).tolist() == pytest.approx([2.0] * 4, rel=1e-6)
    assert torch.allclose(rows, standardise(3 * ZS + 7, 2.0, biased), rtol=1e-6)
    constant = torch.ones(2, 5, requires_grad=True)
    F.cross_entropy(standardise(constant, 2.0, biased), torch.tensor([0, 1])).backward()
    assert constant.grad.isfinite().all()


def test_dkd_is_both_parts():
    tckd, nckd = decoupled(ZS, ZT, Y, 4.0)
    assert tckd.item() == pytest.approx(0.314049991162177, **EXACT)
    assert nckd.item() == pytest.approx(2.274870920998862, **EXACT)
    assert (tckd + 8 * nckd).item() == pytest.approx(18.51301735915307, **EXACT)


def test_the_parts_of_dkd_make_up_kd():
    """KL = KL of the binary distributions + the teacher's 1 − p_y times KL of the others, image by image."""
    for row in range(4):
        pair = ZS[row : row + 1], ZT[row : row + 1]
        tckd, nckd = decoupled(*pair, Y[row : row + 1], 4.0)
        others = 1 - (pair[1] / 4).softmax(1)[0, Y[row]]
        assert (tckd + others * nckd).item() == pytest.approx(kl_divergence(*pair, 4.0).item(), rel=1e-9)


def test_a_label_that_the_teacher_is_sure_of_leaves_finite_gradients():
    student = torch.tensor([[60.0, 0.0, -60.0]], requires_grad=True)
    tckd, nckd = decoupled(student, torch.tensor([[900.0, 0.0, 1.0]]), torch.tensor([0]), 1.0)
    (tckd + nckd).backward()
    assert student.grad.isfinite().all()


def test_dkd_grows_over_the_first_epochs_and_a_resumed_one_goes_on(tiny_data, reference):
    settings = DKDSettings(precision="reference", alpha=0, beta=1)
    objective = made(DKD, settings, tiny_data, reference)
    for epoch, share in ((4, 5 / 20), (39, 1.0)):
        objective.begin_epoch(epoch, 0.1)
        found = objective.own_of_logits(ZS, ZT, Batch(torch.empty(0), Y)).item()
        assert found == pytest.approx(share * 2.274870920998862, **EXACT)
    objective.begin_epoch(4, 0.1)
    other = made(DKD, settings, tiny_data, reference)
    other.ramp.load_state_dict(objective.parts()["ramp"].state_dict())
    assert other.own_of_logits(ZS, ZT, Batch(torch.empty(0), Y)).item() == pytest.approx(0.568717730249716, **EXACT)
    at_once = made(DKD, DKDSettings(precision="reference", ramp=0), tiny_data, reference)
    at_once.begin_epoch(0, 0.1)
    assert at_once.own_of_logits(ZS, ZT, Batch(torch.empty(0), Y)).item() == pytest.approx(18.51301735915307, **EXACT)
