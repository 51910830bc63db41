"""AdaDFKD's generator step: the queue, the window that slides over it, the contrast."""

import pytest
import torch
from generative_tools import batch, built
from torch.nn import functional as F

from dfkd.config import parse
from dfkd.errors import UserError
from dfkd.methods import METHODS, AdaDFKDSettings
from dfkd.synthesis.adadfkd import FeatureQueue, difficulty, sliding_window, window


def cut(scores, low, high):
    """The window of every row, by a full sort."""
    return scores.sort(dim=1).values[:, low:high]


def kept(scores, low, high, dropped):
    """The window of every row as `sliding_window` leaves it, in ascending order."""
    found = sliding_window(scores, torch.tensor(low), torch.tensor(high), dropped)
    assert ((found == scores) | (found == -torch.inf)).all()
    return found.sort(dim=1).values[:, scores.shape[1] - (high - low) :], (found > -torch.inf).sum(1)


@pytest.mark.parametrize(("low", "high"), [(0, 18), (1, 19), (2, 20), (0, 20), (2, 18), (1, 18), (0, 17)])
def test_the_window_is_that_of_a_full_sort(low, high):
    torch.manual_seed(0)
    scores = torch.randn(50, 20)
    found, counts = kept(scores, low, high, 3)
    assert torch.equal(found, cut(scores, low, high))
    assert (counts == high - low).all()


def test_equal_scores_do_not_change_how_many_are_kept():
    torch.manual_seed(0)
    scores = torch.cat([torch.randint(3, (40, 20)).float(), torch.ones(2, 20)])
    found, counts = kept(scores, 2, 17, 4)
    assert torch.equal(found, cut(scores, 2, 17))
    assert (counts == 15).all()


def test_with_nothing_to_drop_all_scores_stay():
    scores = torch.randn(3, 5)
    assert torch.equal(sliding_window(scores, torch.tensor(0), torch.tensor(5), 0), scores)


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9, 0.78, 1.0, 0.01])
@pytest.mark.parametrize("queue", [24, 4608])
def test_the_window_slides_from_the_easiest_to_the_hardest(share, queue):
    settings = AdaDFKDSettings(window=share, queue=queue, synthesis_batch_size=24, epochs=200)
    hardness = [difficulty(settings, epoch) for epoch in range(200)]
    assert hardness[:51] == [0.0] * 51
    assert hardness == sorted(hardness)
    assert hardness[150:] == [1 - share] * 50
    assert share == 1 or hardness[50] < hardness[100] < hardness[149]
    assert hardness[100] == pytest.approx((1 - share) / 2)
    dropped = queue - int(share * queue)
    for epoch in range(200):
        low, high = window(settings, epoch)
        assert low == int(hardness[epoch] * queue)
        assert 0 <= low <= dropped
        assert 0 <= queue - high <= dropped
        assert abs(high - low - share * queue) <= 1
    assert window(settings, 0)[0] == 0


def test_the_contrast_is_the_published_one(tiny_teacher, reference):
    method = built("adadfkd", tiny_teacher, reference, window=0.75, begin=0.0, end=1.0, epochs=4)
    method.synthesize(2)
    torch.manual_seed(1)
    queries = F.normalize(torch.randn(6, 64), dim=1).requires_grad_()
    keys = F.normalize(torch.randn(6, 64), dim=1)
    low, high = window(method.settings, 2)
    assert (low, high) == (3, 21)
    found = method.contrast(queries, keys)
    own = torch.stack([query @ key for query, key in zip(queries, keys, strict=True)])
    others = cut(queries @ method.queue.rows.T, low, high)
    logits = torch.cat([own[:, None], others], dim=1).double() / 0.07
    expected = -(logits[:, 0] - logits.logsumexp(1)).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, queries)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_whole_queue_is_plain_moco(tiny_teacher, reference):
    """window 1: no element is too easy or too hard in any epoch."""
    method = built("adadfkd", tiny_teacher, reference, window=1.0)
    method.synthesize(0)
    torch.manual_seed(1)
    queries, keys = (F.normalize(torch.randn(6, 64), dim=1) for _ in range(2))
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ method.queue.rows.T], dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert method.contrast(queries, keys).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_queue_begins_with_unit_vectors_and_forgets_the_oldest():
    torch.manual_seed(0)
    queue = FeatureQueue(6, 4)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(6))
    first = queue.rows.clone()
    batches = [torch.full((2, 4), float(number)) for number in range(1, 5)]
    queue.push(batches[0])
    assert torch.equal(queue.rows, torch.cat([batches[0], first[2:]]))
    for rows in batches[1:]:
        queue.push(rows)
    assert torch.equal(queue.rows, torch.cat([batches[3], batches[1], batches[2]]))
    assert queue.pointer == 2
    assert dict(queue.named_parameters()) == {}


def test_the_students_features_go_into_the_queue_after_the_step(tiny_teacher, reference, monkeypatch):
    method = built("adadfkd", tiny_teacher, reference)
    before, seen = method.queue.rows.clone(), []
    monkeypatch.setattr(
        method, "_losses", lambda images: seen.append((images, method.queue.rows.clone())) or method.losses(images)
    )
    method.synthesize(0)
    images, at_use = seen[0]
    assert torch.equal(at_use, before)
    method.student.eval()
    features = method.student(images, return_features=True)[1][-1]
    torch.testing.assert_close(method.queue.rows[:6], F.normalize(features, dim=1).detach())
    assert torch.equal(method.queue.rows[6:], before[6:])
    assert not method.queue.rows.requires_grad


def test_the_contrast_sends_no_gradient_through_the_student(tiny_teacher, reference, monkeypatch):
    """Its gradient to the images is the one through the teacher."""
    method = built("adadfkd", tiny_teacher, reference)
    method.synthesize(0)
    method.student.eval()
    images = batch()
    with method.statistics.recording():
        (found,) = torch.autograd.grad(method.losses(images)["contrast"], images)
    features = method.teacher(images, return_features=True)[1][-1]
    keys = F.normalize(method.student(images, return_features=True)[1][-1], dim=1).detach()
    (expected,) = torch.autograd.grad(method.contrast(F.normalize(features, dim=1), keys), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert found.abs().max() > 0


def test_the_loss_is_cudfkds_and_the_contrast(tiny_teacher, reference):
    found = []
    for weight in (0.0, 3.0):
        method = built("adadfkd", tiny_teacher, reference, hard=weight)
        method.synthesize(0)
        method.student.eval()
        torch.manual_seed(0)
        with method.statistics.recording():
            found.append(method.losses(batch()))
        method.queue.rows.zero_()
    one, other = found
    rest = one["loss"]
    terms = one["entropy"] * 20 + one["adv"] + one["oh"] + one["bn"]
    assert rest.item() == pytest.approx(terms.item(), rel=1e-5)
    terms = other["entropy"] * 20 + other["adv"] + other["oh"] + other["bn"] + 3 * other["contrast"]
    assert other["loss"].item() == pytest.approx(terms.item(), rel=1e-5)


def test_js_is_one_minus_the_clamped_divergence(tiny_teacher, reference):
    method = built("adadfkd", tiny_teacher, reference, adversarial="js")
    same = torch.randn(5, 3)
    assert method.adversarial(same, same).item() == pytest.approx(1, abs=1e-6)
    far = method.adversarial(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([[0.0, 60.0, 0.0]]))
    p, q, m = ([0.99, 0.01, 0.01], [0.01, 0.99, 0.01], [0.5, 0.5, 0.01])
    expected = 0.5 * sum(c * (torch.tensor(c / a).log() + torch.tensor(c / b).log()) for a, b, c in zip(p, q, m, strict=True))
    assert far.item() == pytest.approx(1 - min(expected.item(), 1), rel=1e-5)


def test_features_of_another_size_are_projected_at_random_at_every_use(tiny_teacher, reference):
    method = built("adadfkd", tiny_teacher, reference, student="wrn102")
    layer = method.objective.projection.layer
    assert (layer.in_features, layer.out_features) == (128, 64)
    weights, pointer = [layer.weight.clone()], layer.weight.data_ptr()
    for _ in range(2):
        method.synthesize(0)
        weights.append(layer.weight.clone())
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert layer.weight.data_ptr() == pointer
    assert weights[2].abs().max() <= 128**-0.5
    assert weights[2].std().item() == pytest.approx(128**-0.5 / 3**0.5, rel=0.05)
    fixed = built("adadfkd", tiny_teacher, reference, student="wrn102", projection="fixed")
    before = fixed.objective.projection.layer.weight.clone()
    fixed.synthesize(0)
    assert torch.equal(before, fixed.objective.projection.layer.weight)
    assert built("adadfkd", tiny_teacher, reference).objective.projection.layer is None


def test_a_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(UserError, match="queue 4096 is not a multiple of synthesis_batch_size 768; 3840 is"):
        parse(METHODS["adadfkd"].settings, {"queue": 4096}, "config")
    with pytest.raises(UserError, match="queue 10 is not a multiple of synthesis_batch_size 768; 768 is"):
        parse(METHODS["adadfkd"].settings, {"queue": 10}, "config")
    assert AdaDFKDSettings().queue == 6 * 768
