"""Objectives on feature maps: AT, FitNet, SP, VID, NST, SVD."""

import pytest
import torch
from golden import EXACT, FA, FS, FT, det
from torch.nn import functional as F

from dfkd.distillation.zoo.at import attention_loss
from dfkd.distillation.zoo.nst import selectivity_loss
from dfkd.distillation.zoo.objective import to_smaller
from dfkd.distillation.zoo.regressor import regressor
from dfkd.distillation.zoo.sp import similarity_loss
from dfkd.distillation.zoo.svd import TopEigenvectors, aligned, singular_loss, singular_vectors
from dfkd.distillation.zoo.vid import Gaussian, gaussian_loss
from dfkd.errors import UserError


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_at_is_that_of_the_published_code():
    assert attention_loss(FS, FT).item() == pytest.approx(0.0012571758795396, abs=1e-12)
    assert attention_loss(FS[:1], FT[1:2]).item() == pytest.approx(0.0001393434589287, abs=1e-12)  # pooled to 4×4
    assert attention_loss(FT[1:2], FS[:1]).item() == pytest.approx(0.0001393434589287, abs=1e-12)


def test_maps_that_are_scaled_copies_have_one_attention():
    assert attention_loss(FS, [3 * value for value in FS]).item() == pytest.approx(0, abs=1e-15)


def test_maps_are_brought_to_the_smaller_size_along_each_axis():
    ours, theirs = to_smaller(*drawn((2, 3, 8, 4), (2, 5, 4, 6)))
    assert (ours.shape, theirs.shape) == ((2, 3, 4, 4), (2, 5, 4, 4))
    assert torch.equal(to_smaller(FS[1], FT[0])[1], F.avg_pool2d(FT[0], 2))


def test_the_regressor_is_chosen_by_the_sizes():
    for ours, theirs, kind, kernel in (
        ((4, 8, 8), (6, 4, 4), torch.nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), torch.nn.ConvTranspose2d, (4, 4)),
        ((4, 8, 8), (6, 8, 8), torch.nn.Conv2d, (1, 1)),
        ((4, 8, 7), (6, 5, 6), torch.nn.Conv2d, (4, 2)),
    ):
        network = regressor(ours, theirs, "FitNet")
        assert (type(network[0]), network[0].kernel_size) == (kind, kernel)
        found = network(torch.randn(2, *ours))
        assert found.shape == (2, *theirs)
        assert found.min() >= 0
        assert regressor(ours, theirs, "FitNet", relu=False)(torch.randn(2, *ours)).min() < 0
    with pytest.raises(UserError, match=r"FitNet: the student's map is 2×2 and the teacher's 8×8; pair layers"):
        regressor((4, 2, 2), (6, 8, 8), "FitNet")


def test_the_hints_distance_is_a_mean_over_all_elements():
    assert F.mse_loss(FA[1], FT[1]).item() == pytest.approx(0.996840480862886, **EXACT)


def test_sp_is_that_of_the_published_code():
    assert similarity_loss(FS[2:], FT[2:]).item() == pytest.approx(0.0817076993854606, **EXACT)


def test_sp_looks_at_the_images_relations_alone():
    (maps,) = drawn((5, 6, 2, 2))
    turned, _ = torch.linalg.qr(drawn((24, 24))[0])
    assert similarity_loss([maps], [(maps.flatten(1) @ turned).view(5, 24, 1, 1) * 3]).item() == pytest.approx(0, abs=1e-20)
    assert similarity_loss([maps], [maps.flip(0)]).item() > 1e-3


def test_vid_is_that_of_the_published_code():
    head = Gaussian(4, 8).double()
    shapes = [(8, 4, 1, 1), (8, 8, 1, 1), (8, 8, 1, 1)]
    with torch.no_grad():
        for k, shape in enumerate(shapes):
            head.mean[2 * k].weight.copy_(det(shape, 0.3 + 0.1 * k, 0.1 * k, 0.5))
    assert head.variance.tolist() == pytest.approx([5.0] * 8, rel=1e-6)
    assert gaussian_loss(head(FS[0]), head.variance, FT[0]).item() == pytest.approx(0.8870526270533541, rel=1e-6)
    assert sum(p.numel() for p in head.parameters()) == 4 * 8 + 2 * 64 + 8


def test_vid_is_a_likelihood_and_stays_finite():
    mean, wanted = drawn((2, 3, 2, 2), (2, 3, 2, 2))
    variance = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    normal = torch.distributions.Normal(mean, variance.sqrt().view(1, 3, 1, 1))
    constant = 0.5 * torch.tensor(2 * torch.pi, dtype=torch.float64).log()
    assert gaussian_loss(mean, variance, wanted).item() == pytest.approx(-(normal.log_prob(wanted) + constant).mean().item())
    head = Gaussian(1, 1)
    torch.nn.init.constant_(head.scale, 200.0)  # exp of it is more than float32 holds
    assert head.variance.item() == pytest.approx(200.0, rel=1e-4)


def test_nst_is_that_of_the_published_code():
    assert selectivity_loss(FS, FT).item() == pytest.approx(0.247743242654706, **EXACT)


@pytest.mark.parametrize("size", [6, 2])  # more pixels than channels, and fewer
def test_nst_is_the_mmd_of_channels(size):
    ours, theirs = drawn((2, 5, size, size), (2, 7, size, size))
    wanted = 0.0
    for s, t in zip(ours, theirs, strict=True):
        s, t = ([channel.flatten() / channel.norm() for channel in maps] for maps in (s, t))
        for one, other, sign in ((t, t, 1), (s, s, 1), (s, t, -2)):
            pairs = [float(a @ b) ** 2 for a in one for b in other]
            wanted += sign * sum(pairs) / len(pairs) / 2
    assert selectivity_loss([ours], [theirs]).item() == pytest.approx(wanted, rel=1e-9)
    assert selectivity_loss([ours], [2 * ours.flip(1)]).item() == pytest.approx(0, abs=1e-15)


def published_svd(student, teacher):
    """The published code's loss, by LAPACK's SVD, with the sign that is chosen here: LAPACK's differs from image to image."""
    total, before = 0.0, None
    for ours, theirs in zip(student, teacher, strict=True):
        v_s, v_t = (torch.linalg.svd(maps.flatten(2).mT)[2].mT[..., :k] for maps, k in ((ours, 4), (theirs, 1)))
        v_t = v_t * v_t.sum(1, keepdim=True).sign()
        cosine = v_s.mT @ v_t
        best = cosine.abs().argmax(1, keepdim=True)
        now = (v_s @ torch.zeros_like(cosine).scatter(1, best, cosine.gather(1, best).sign()), v_t)
        if before is not None:
            r_s, r_t = (torch.exp(-((one - other.mT) ** 2) / 8) for one, other in zip(now, before, strict=True))
            total += float((r_s - r_t).square().sum()) / len(ours)
        before = now
    return total


@pytest.mark.parametrize("channels", [6, 20])  # fewer than pixels in all maps, and more in the last
def test_svd_is_that_of_the_published_code(channels):
    shapes = [(3, channels, 6, 6), (3, channels, 4, 4), (3, channels, 4, 4)]
    student, teacher = ([maps.relu() for maps in drawn(*shapes, seed=seed)] for seed in (1, 2))
    assert singular_loss(student, teacher).item() == pytest.approx(published_svd(student, teacher), rel=1e-8)


def test_svd_finds_the_students_nearest_vector():
    left, _ = torch.linalg.qr(drawn((2, 9, 5))[0])
    right, _ = torch.linalg.qr(drawn((2, 5, 5), seed=1)[0])
    strengths = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    student = (left * strengths @ right.mT).mT.reshape(2, 5, 3, 3)
    teacher = (left * strengths.roll(2) @ right.mT).mT.reshape(2, 5, 3, 3)  # its first is the student's third
    ours, theirs = aligned(student, teacher)
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert torch.allclose(theirs.abs(), right[..., 2].abs(), atol=1e-9)
    assert theirs.sum(1).min() > 0


def test_gradients_of_singular_vectors_are_right_and_finite_where_values_are_equal():
    (maps,) = drawn((2, 3, 2, 3))
    weights = drawn((2, 3, 2), seed=3)[0]
    torch.autograd.gradcheck(
        lambda x: (singular_vectors(x, 2).abs() * weights).sum(), maps.requires_grad_(), eps=1e-7, atol=1e-5
    )
    torch.autograd.gradcheck(
        lambda x: (singular_vectors(x, 2).abs() * weights.repeat(1, 3, 1)).sum(),
        drawn((2, 9, 2, 2), seed=4)[0].requires_grad_(),
        eps=1e-7,
        atol=1e-5,
    )
    equal = torch.eye(4, dtype=torch.float64)[None].requires_grad_()
    TopEigenvectors.apply(equal, 2).sum().backward()
    assert equal.grad.abs().max() == 0
