"""What holds for every method whose generator lives for the whole run."""

import copy

import pytest
import torch
from generative_tools import NAMES, assembled, built

from dfkd.config import parse
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import denormalise, normalise
from dfkd.distillation.objective import Batch
from dfkd.distillation.schedule import count_syntheses, count_turns
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.runtime import Runtime, seed_everything


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def differ(before, module):
    after = module.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", NAMES)
def test_a_synthesis_moves_the_generator_alone(name, tiny_teacher, reference):
    method = built(name, tiny_teacher, reference, g_steps=2)
    method.student.train()
    before = [weights(network) for network in (method.generator, method.teacher, method.student)]
    made = method.synthesize(0)
    assert {key for key, _ in method.generator.named_parameters()} <= differ(before[0], method.generator)
    assert differ(before[1], method.teacher) == set()
    buffers = {key for key, _ in method.student.named_buffers()}
    assert differ(before[2], method.student) == (buffers if name == "dfad" else set())
    assert all(parameter.grad is None for network in (method.teacher, method.student) for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in method.student.parameters())
    assert method.student.training
    assert not method.teacher.training
    assert next(iter(made.terms)) == "loss"
    assert (made.count, made.optimiser_steps, made.teacher_queries, len(made.images)) == (12, 2, 12, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_synthesis_minimises_its_loss(name, tiny_teacher, reference):
    """On the same latents, the loss after 30 steps against a student that stands still is lower."""
    found = []
    for steps in (0, 30):
        method = built(name, tiny_teacher, reference, lr_g=5e-3, synthesis_batch_size=12)
        method.student_trains = False  # DFAD's statistics would follow the images
        for _ in range(steps):
            method.synthesize(0)
        seed_everything(9)
        found.append(method.synthesize(0).terms["loss"])
    assert found[1] < found[0] - 0.01 * abs(found[0])


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_images_and_batches_are_normalised(name, tiny_teacher, reference):
    method = built(name, tiny_teacher, reference)
    method.synthesize(0)
    seed_everything(3)
    images = method.sample(7)
    seed_everything(3)
    inputs = method.batch(7)
    assert images.shape == inputs.shape == (7, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0
    assert not images.requires_grad
    assert not inputs.requires_grad
    if name == "dfad":
        assert torch.equal(images, denormalise(inputs, method.info))
    else:
        assert torch.equal(normalise(images, method.info), inputs)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dfad"])
def test_an_image_of_the_students_batch_does_not_depend_on_the_others(name, tiny_teacher, reference):
    """Running statistics: the generator is in eval mode."""
    method = built(name, tiny_teacher, reference)
    method.synthesize(0)
    seed_everything(3)
    many = method.batch(6)
    seed_everything(3)
    few = method.batch(2)  # the first latents of the six
    torch.testing.assert_close(many[:2], few)
    before = weights(method.generator)
    method.batch(4)
    assert differ(before, method.generator) == set()


@pytest.mark.parametrize("name", NAMES)
def test_resumed_it_goes_on_to_the_bit(name, tiny_teacher, reference):
    """Everything saved between two syntheses and put into fresh objects: the same syntheses and student steps follow."""

    def turn(method, epoch, steps=2):
        seed_everything("turn", epoch)
        terms = method.synthesize(epoch).terms
        return terms, [method.objective.step(Batch(method.batch(6), torch.empty(0, dtype=torch.int64))) for _ in range(steps)]

    changes = {"epochs": 4, "g_steps": 2} | ({"begin": 0.0} if name in ("cudfkd", "adadfkd") else {})
    one = built(name, tiny_teacher, reference, student="wrn102", **changes)
    for epoch in range(2):
        turn(one, epoch)
    state = {
        key: copy.deepcopy(part.state_dict()) for holder in (one, one.objective) for key, part in named_parts(holder).items()
    }
    expected = [turn(one, epoch) for epoch in (2, 3)]
    other = built(name, tiny_teacher, reference, student="wrn102", **changes)
    turn(other, 0)  # it has a history of its own, that must not matter
    for holder in (other, other.objective):
        for key, part in named_parts(holder).items():
            part.load_state_dict(state[key])
    found = [turn(other, epoch) for epoch in (2, 3)]
    for (terms, steps), (other_terms, other_steps) in zip(expected, found, strict=True):
        assert terms == other_terms
        assert all(torch.equal(a, b) for a, b in zip(steps, other_steps, strict=True))


def named_parts(holder):
    return {
        f"{'synthesizer' if hasattr(holder, 'synthesize') else 'objective'} {key}": part for key, part in holder.parts().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_path_agrees_with_the_reference(name, tiny_teacher):
    """Terms of the first synthesis to 1e-3 (3e-2 where bf16 is multiplied in hardware)."""
    found, dtype = [], torch.float32
    for precision in ("reference", "fast"):
        runtime = Runtime.create(precision, "cpu")
        dtype = runtime.dtype
        method = built(name, tiny_teacher, runtime, synthesis_batch_size=12, precision=precision)
        seed_everything(2)
        found.append(method.synthesize(0).terms)
    Runtime.create("reference", "cpu")
    assert found[1] == pytest.approx(found[0], rel=1e-3 if dtype == torch.float32 else 3e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "syntheses", "student_steps", "batch"),
    [
        ("dafl", 16_000, 80_000, 256),
        ("zskt", 16_000, 80_000, 256),
        ("dfq", 8_000, 80_000, 256),
        ("dfad", 25_000, 125_000, 256),
        ("cudfkd", 10_000, 100_000, 512),
        ("adadfkd", 12_000, 120_000, 768),
    ],
)
def test_the_budget_is_the_published_one(name, syntheses, student_steps, batch):
    settings = METHODS[name].settings()
    assert count_syntheses(settings) * settings.g_steps == syntheses
    assert count_turns(settings) - count_syntheses(settings) == student_steps
    assert settings.batch_size == settings.synthesis_batch_size == batch


@pytest.mark.parametrize(
    ("name", "betas"),
    [("dafl", (0.5, 0.999)), ("zskt", (0.5, 0.999)), ("dfq", (0.5, 0.999)), ("dfad", (0.9, 0.999)), ("cudfkd", (0.9, 0.99))],
)
def test_the_generators_adam(name, betas, tiny_teacher, reference):
    (group,) = built(name, tiny_teacher, reference).optimiser.param_groups
    assert (group["betas"], group["lr"], group["weight_decay"]) == (betas, 1e-3, 0)


@pytest.mark.parametrize("name", ["dfq", "cudfkd", "adadfkd"])
def test_a_teacher_without_batchnorm_is_refused_unless_its_weight_is_0(name, reference):
    info = DatasetInfo(
        name="m", classes=list("0123456789"), image_size=32, channels=1, mean=[0.1], std=[0.3], crop_padding=0, flip=False
    )
    teacher = build_model("lenet5", 10, 1, 32).eval().requires_grad_(False)
    with pytest.raises(UserError, match=r"needs BatchNorm layers; the teacher \(LeNet\) has none"):
        assembled(name, teacher, "lenet5half", info, reference)
    made = assembled(name, teacher, "lenet5half", info, reference, bn=0.0).synthesize(0)
    assert made.terms["bn"] == 0


def test_hooks_are_gone_after_a_synthesis(tiny_teacher, reference):
    method = built("dfq", tiny_teacher, reference)
    method.synthesize(0)
    assert not any(module._forward_pre_hooks for module in method.teacher.modules())
    assert method.statistics._found == []


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_that_adam_does_not_take_are_refused(betas):
    with pytest.raises(UserError, match="betas"):
        parse(METHODS["dafl"].settings, {"betas": betas}, "config")
