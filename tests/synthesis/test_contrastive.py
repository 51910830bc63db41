"""CMI's contrastive term: features, ring, loss, gradients."""

import pytest
import torch

from dfkd.datasets.views import normalise, random_resized_views
from dfkd.errors import UserError
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.synthesis.contrastive import Contrast, FeatureBank, Head, InstanceFeatures, contrastive_loss


@pytest.mark.parametrize(
    ("name", "which", "dimension"),
    [("resnet34", "auto", 512), ("resnet18", "bn", 4800), ("wrn402", "auto", 2704), ("vgg11", "auto", 2752)],
)
def test_instance_features_have_the_published_size(name, which, dimension):
    model = build_model(name, 10).eval()
    features = InstanceFeatures(model, which)
    with torch.no_grad(), features.recording():
        model(torch.zeros(2, 3, 32, 32))
        assert features.take().shape == (2, dimension)
    assert not any(layer._forward_pre_hooks for layer in features.layers)


def test_a_resnets_features_are_means_of_the_layers_inputs_without_the_last_output():
    torch.manual_seed(0)
    model = build_model("resnet18", 10).eval()
    images = torch.randn(3, 3, 32, 32)
    features = InstanceFeatures(model, "layers")
    with torch.no_grad(), features.recording():
        _, maps = model(images, return_features=True)
        found = features.take()
        stem = model.bn1(model.conv1(images)).relu()
    torch.testing.assert_close(found, torch.cat([x.mean((2, 3)) for x in (stem, *maps[:3])], 1))


def test_features_that_a_network_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"WideResNet.*no layer1 … layer4; choose bn"):
        InstanceFeatures(build_model("wrn101", 10), "layers")
    with pytest.raises(UserError, match="needs BatchNorm layers; the teacher \\(LeNet\\) has none"):
        InstanceFeatures(build_model("lenet5", 10, 1), "auto")


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 3)


def test_the_ring_is_first_in_first_out():
    bank = FeatureBank(6, 3, torch.device("cpu"))
    assert bank.sample(4)[0].shape == (0, 3)
    for number in range(5):  # five batches of two in a ring of three
        bank.append(rows(2 * number, 2 * number + 1), -rows(2 * number, 2 * number + 1))
        first = 0 if number < 3 else 2 * (number - 2)
        local, whole = bank.sample(100)
        assert sorted(local[:, 0].tolist()) == list(range(first, 2 * number + 2))  # also when it is exactly full
        assert torch.equal(local, -whole)  # pairs stay pairs
    torch.manual_seed(0)
    drawn = [tuple(bank.sample(3)[0][:, 0].tolist()) for _ in range(60)]
    assert all(len(set(draw)) == 3 for draw in drawn)
    assert {value for draw in drawn for value in draw} == {4, 5, 6, 7, 8, 9}


def test_the_rings_state_holds_the_filled_rows_and_goes_on_where_it_was():
    bank, other = (FeatureBank(6, 3, torch.device("cpu")) for _ in range(2))
    bank.append(rows(0, 1), rows(0, 1))
    state = bank.state_dict()
    assert state["rows"].shape == (2, 2, 3)
    other.load_state_dict(state)
    for ring in (bank, other):
        for number in range(1, 4):
            ring.append(rows(2 * number, 2 * number + 1), rows(2 * number, 2 * number + 1))
    assert torch.equal(bank.rows, other.rows)
    assert (bank.filled, bank.position) == (other.filled, other.position) == (6, 2)


def test_the_loss_is_the_cross_entropy_with_the_own_global_view_averaged_over_new_and_cached_rows():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1) for _ in range(2))
    per_row = [-(a[i] @ b[i]) / 0.2 + (a[i] @ b.T / 0.2).exp().sum().log() for i in range(7)]
    expected = sum(per_row[:3]) / 3 + sum(per_row[3:]) / 4
    assert contrastive_loss(a, b, 3, 0.2).item() == pytest.approx(expected.item(), rel=1e-12)
    only_new = [-(a[i] @ b[i]) / 0.2 + (a[i] @ b[:3].T / 0.2).exp().sum().log() for i in range(3)]
    assert contrastive_loss(a[:3], b[:3], 3, 0.2).item() == pytest.approx((sum(only_new) / 3).item(), rel=1e-12)


def test_the_heads_answers_have_unit_norm():
    torch.manual_seed(0)
    answers = Head(6)(torch.randn(4, 6))
    assert answers.shape == (4, 256)
    torch.testing.assert_close(answers.norm(dim=1), torch.ones(4))


def contrast(weights, runtime, **changes):
    teacher, card = load_model(weights, runtime)
    torch.manual_seed(1)
    options = {"weight": 0.8, "temperature": 0.1, "lr": 1e-3, "batch_size": 4, "bank_size": 12, "bank_sample": 8}
    return Contrast(teacher, card.dataset, runtime, **(options | changes))


def test_a_ring_that_the_batch_does_not_divide_is_refused(tiny_teacher, reference):
    with pytest.raises(UserError, match="bank_size 10 is no multiple of synthesis_batch_size 4; choose 8"):
        contrast(tiny_teacher, reference, bank_size=10)


@pytest.mark.parametrize("filled", [0, 8])
def test_the_images_gradient_comes_through_their_own_local_rows_alone(tiny_teacher, reference, filled):
    term = contrast(tiny_teacher, reference)
    teacher, info = term.teacher, term.info
    dimension = term.bank.rows.shape[2]
    for _ in range(filled // 4):
        term.bank.append(torch.randn(4, dimension), torch.randn(4, dimension))
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    torch.manual_seed(7)
    with term.synthesis():
        cached = term._cached
        teacher(normalise(images, info))  # the global views, with a graph
        loss, local, whole = term.loss(images)
    assert cached[0].shape == (filled, dimension)
    assert not any(value.requires_grad for value in (local, whole, *cached, term.bank.rows))
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    of_head = torch.autograd.grad(loss, list(term.head.parameters()))

    torch.manual_seed(7)
    term.bank.sample(8)  # the same draw
    features = InstanceFeatures(teacher, "bn")
    with features.recording():
        teacher(normalise(random_resized_views(images, info), info))
        own_local = features.take()
    torch.testing.assert_close(own_local, local)
    a = term.head(torch.cat([own_local, cached[0]]))
    b = term.head(torch.cat([whole, cached[1]])).detach()
    expected = contrastive_loss(a, b, 4, 0.1)
    assert expected.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(expected, images, retain_graph=True)[0], gradient)
    for found, wanted in zip(of_head, torch.autograd.grad(expected, list(term.head.parameters())), strict=True):
        torch.testing.assert_close(found, wanted)
    assert gradient.abs().sum() > 0


def test_a_step_moves_the_head_and_clears_its_gradients(tiny_teacher, reference):
    term = contrast(tiny_teacher, reference)
    before = [value.clone() for value in term.head.parameters()]
    with term.synthesis():
        images = torch.rand(4, 1, 8, 8)
        term.teacher(normalise(images, term.info))
        term.loss(images)[0].backward()
        term.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, term.head.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in term.head.parameters())
    assert term.optimiser.param_groups[0]["betas"] == (0.9, 0.999)
