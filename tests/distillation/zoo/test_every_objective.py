"""What holds for every objective of the literature that is registered, on networks of a moment's size."""

import copy

import pytest
import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.store import ImageStore
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.plugins import load
from dfkd.runtime import seed_everything

ZOO = [name for name, method in METHODS.items() if method.objective.startswith("dfkd.distillation.zoo.")]
SIZE = 8  # images of a batch, which the whole store is
# Every row of the memory banks is renewed in every step here: at the published momentum the anchors chase them.
OWN = {name: {"negatives": 4, "crd_momentum": 0.9} for name in ("kd-crd", "kd-crd-kd")}


def made(name, info, runtime, seed=0, **changes):
    """An objective that is ready for its first step: a random teacher that looks at four channels, a smaller student."""
    method = METHODS[name]
    seed_everything(1)
    teacher = build_model("wrn161" if method.equal_channels else "wrn102", 3, 1, 8).requires_grad_(False)
    teacher.train()(torch.randn(32, 1, 8, 8))  # BatchNorm statistics that are no defaults
    seed_everything(seed)
    student = build_model("wrn101", 3, 1, 8)
    settings = method.settings(precision="reference", batch_size=SIZE, lr=0.01, **OWN.get(name, {}), **changes)
    objective = load(method.objective)(teacher.eval(), student, info, settings, runtime)
    if name == "kd-ft":  # what its first stage would have kept
        seed_everything(2)
        objective.start_from({key: torch.randn_like(value) / 8 for key, value in objective.paraphraser.state_dict().items()})
    store = ImageStore(SIZE, info.shape, runtime)
    store.append(torch.randint(0, 256, (SIZE, *info.shape), dtype=torch.uint8), torch.arange(SIZE) % 3)
    objective.begin(store)
    objective.begin_epoch(30, settings.lr)  # ramps are over
    return objective


def batch(count=SIZE):
    generator = torch.Generator().manual_seed(3)
    rows = torch.arange(count)
    return Batch(torch.randn(count, 1, 8, 8, generator=generator), rows % 3, rows)


def heads(objective):
    parts = {key: part for key, part in objective.parts().items() if isinstance(part, torch.nn.Module) and key != "student"}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.named_parameters()}


@pytest.mark.parametrize("name", ZOO)
def test_the_sum_is_that_of_the_weighted_terms(name, tiny_data, reference):
    objective = made(name, tiny_data.info, reference, ce=0.7, kd=0.3)
    settings, found = objective.settings, objective.losses(batch())
    assert tuple(found) == objective.terms
    wanted = 0.7 * found["ce"] + 0.3 * found["kd"]
    if settings.term:
        wanted = wanted + getattr(settings, settings.term) * found[settings.term]
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert all(value.shape == () and value.isfinite() for value in found.values())
    if name not in ("kdrefine", "kd-logitstd"):
        logits, answers = objective.student(batch().images), objective.teacher(batch().images)
        assert found["ce"].item() == pytest.approx(F.cross_entropy(logits, batch().labels).item(), rel=1e-4)
        kl = F.kl_div((logits / 4).log_softmax(1), (answers / 4).softmax(1), reduction="batchmean") * 16
        assert found["kd"].item() == pytest.approx(kl.item(), rel=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_gradients_reach_student_and_heads_and_nothing_else(name, tiny_data, reference):
    objective = made(name, tiny_data.info, reference)
    before = copy.deepcopy(objective.teacher.state_dict())
    student = copy.deepcopy(objective.student.state_dict())
    trained = {name: value for name, value in heads(objective).items() if value.requires_grad}
    former = {name: value.detach().clone() for name, value in trained.items()}
    objective.step(batch())
    assert not objective.teacher.training
    assert all(value.grad is None for value in objective.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in objective.teacher.state_dict().items())
    assert all(not torch.equal(value, student[key]) for key, value in objective.student.named_parameters())
    assert all(value.grad is not None and not torch.equal(value, former[key]) for key, value in trained.items())
    optimised = {id(value) for group in objective.optimiser.param_groups for value in group["params"]}
    assert optimised == {id(value) for value in (*objective.student.parameters(), *trained.values())}


@pytest.mark.parametrize("name", ZOO)
def test_the_own_term_alone_teaches_the_student(name, tiny_data, reference):
    changes = {"ce": 0, "kd": 0} if METHODS[name].settings.term else {}
    objective = made(name, tiny_data.info, reference, **changes)
    losses = [objective.step(batch())[0].item() for _ in range(12)]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", [name for name in ZOO if name != "kd-semckd"])
def test_a_batch_of_another_size_is_taken(name, tiny_data, reference):
    objective = made(name, tiny_data.info, reference)
    objective.step(batch())
    assert objective.step(batch(3)).isfinite().all()


@pytest.mark.parametrize("name", ZOO)
def test_a_state_that_is_loaded_elsewhere_goes_on_alike(name, tiny_data, reference):
    one = made(name, tiny_data.info, reference)
    one.step(batch())
    other = made(name, tiny_data.info, reference, seed=5)
    for key, part in one.parts().items():
        other.parts()[key].load_state_dict(copy.deepcopy(part.state_dict()))
    for step in range(2):
        terms = []
        for objective in (one, other):
            seed_everything(step)  # a checkpoint holds the random state
            terms.append(objective.step(batch()))
        assert torch.equal(*terms)
    states = (objective.parts()["student"].state_dict() for objective in (one, other))
    assert all(torch.equal(*values) for values in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("kd-semckd", "kd-crd", "kd-crd-kd")])
def test_those_that_processes_may_share_are_means_over_images(name, tiny_data, reference):
    """But for BatchNorm in training, whose statistics processes exchange, and for those that compare images, which they gather.

    SemCKD takes no part, and CRD has rows in common.
    """
    objective = made(name, tiny_data.info, reference)
    for part in objective.parts().values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    images, labels, rows, *_ = batch()
    shares = {3 / 8: slice(0, 3), 5 / 8: slice(3, 8)}
    with torch.no_grad():
        whole = objective.losses(batch())["loss"]
        parts = {share: objective.losses(Batch(images[own], labels[own], rows[own])) for share, own in shares.items()}
    together = sum(share * found["loss"] for share, found in parts.items())
    assert objective.shareable
    assert (together.item() == pytest.approx(whole.item(), rel=1e-4)) == (name not in ("kd-sp", "kd-cc", "kd-rkd", "kd-pkt"))
