"""Fast and FastMeta: what the meta generator learns, when terms begin, what survives."""

import copy

import pytest
import torch

from dfkd.distillation.run import build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, rate_at
from dfkd.errors import UserError
from dfkd.methods import METHODS, FastSettings
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.fast import reset_first_layer
from dfkd.synthesis.synthesizer import FreshSynthesizer

SMALL = {"synthesis_batch_size": 6, "g_steps": 3, "latent_size": 8, "width": 4, "batch_size": 6, "warmup": 2, "reset_after": 0}


def method(weights, runtime, name="fastmeta", **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return build_method(name, teacher, student, card, FastSettings(**(SMALL | changes)), runtime)[0]


def weights_of(network):
    return [value.detach().clone() for value in network.parameters()]


def made_by(synthesizer, epoch):
    seed_everything("made", epoch)
    return synthesizer.synthesize(epoch)


def test_budget_and_rates_are_the_published_ones():
    settings = FastSettings()
    syntheses = count_syntheses(settings)
    assert syntheses * settings.synthesis_batch_size == 56_320
    assert syntheses * settings.g_steps == 440
    assert count_turns(settings) - syntheses == 80_000
    assert rate_at(settings, 0) == rate_at(settings, 20) == 0.2
    assert rate_at(settings, 120) == pytest.approx((0.2 + 2e-4) / 2)
    assert 2e-4 < rate_at(settings, 219) < 2.2e-4


def test_one_step_gives_the_meta_generator_the_plain_gradient(tiny_teacher, reference):
    gradients = []
    for name in ("fast", "fastmeta"):
        fast = method(tiny_teacher, reference, name, g_steps=1)
        made_by(fast, 0)
        gradients.append([value.grad.clone() for value in fast.generator.parameters()])
    assert all(torch.equal(plain, meta) for plain, meta in zip(*gradients, strict=True))
    assert sum(value.abs().sum() for value in gradients[0]) > 0


def test_the_meta_gradient_is_the_sum_along_the_inner_path_and_the_meta_rate_k_times_the_inner(tiny_teacher, reference):
    meta = method(tiny_teacher, reference, lr_g=1e-3)
    assert meta.meta_optimiser.param_groups[0]["lr"] == pytest.approx(3e-3)
    start, path, step = weights_of(meta.generator), [], meta.optimiser.step
    meta.optimiser.step = lambda: (path.append([value.grad.clone() for value in meta.working.parameters()]), step())
    made_by(meta, 0)
    assert len(path) == 3
    assert not any(torch.equal(first, last) for first, last in zip(path[0], path[2], strict=True))
    for parameter, before, *gradients in zip(meta.generator.parameters(), start, *path, strict=True):
        torch.testing.assert_close(parameter.grad, sum(gradients))
        # Adam's first step is the rate in the gradient's direction
        clear = parameter.grad.abs() > 1e-5
        torch.testing.assert_close((before - parameter)[clear], 3e-3 * parameter.grad.sign()[clear], rtol=5e-3, atol=1e-6)


def test_reptile_follows_the_way_to_the_inner_generator(tiny_teacher, reference):
    meta = method(tiny_teacher, reference, meta="reptile")
    start = weights_of(meta.generator)
    made_by(meta, 0)
    for parameter, before, inner in zip(meta.generator.parameters(), start, meta.working.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 67 * (before - inner))
        assert not torch.equal(parameter, before)


def test_every_synthesis_starts_from_the_meta_generator(tiny_teacher, reference):
    meta = method(tiny_teacher, reference)
    assert meta.working is not meta.generator
    made_by(meta, 0)
    assert not torch.equal(weights_of(meta.generator)[0], weights_of(meta.working)[0])
    meta.begin(1)
    assert all(torch.equal(a, b) for a, b in zip(meta.generator.parameters(), meta.working.parameters(), strict=True))
    assert all(value.grad.abs().sum() == 0 for value in meta.generator.parameters())
    plain = method(tiny_teacher, reference, "fast")
    assert plain.working is plain.generator


def test_moments_start_anew_in_every_synthesis_and_those_of_the_meta_step_do_not(tiny_teacher, reference):
    meta = method(tiny_teacher, reference)
    for epoch in range(2):
        made_by(meta, epoch)
    assert {int(state["step"]) for state in meta.optimiser.state.values()} == {3}
    assert {int(state["step"]) for state in meta.meta_optimiser.state.values()} == {2}
    rates = [group["lr"] for group in meta.optimiser.param_groups]
    assert rates == [meta.settings.lr_g, meta.settings.lr_z]


def test_the_adversarial_term_begins_with_synthesis_number_warmup(tiny_teacher, reference):
    meta = method(tiny_teacher, reference, bn=2.0, oh=3.0, adv=4.0)
    terms = [made_by(meta, epoch).terms for epoch in range(3)]
    assert [list(found) for found in terms] == [["loss", "bn", "oh"], *[["loss", "bn", "oh", "adv"]] * 2]
    for found in terms:
        expected = 2 * found["bn"] + 3 * found["oh"] + 4 * found.get("adv", 0.0)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_statistics_are_remembered_once_per_synthesis(tiny_teacher, reference, monkeypatch):
    meta, seen = method(tiny_teacher, reference), []
    for epoch in range(2):
        made_by(meta, epoch)
        seen.append(([value.clone() for value in meta.statistics._last], [value.clone() for value in meta.statistics._moving]))
    (first, after_first), (second, after_second) = seen
    for a, b, c, d in zip(first, after_first, second, after_second, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(d, 0.9 * a + 0.1 * c)


def test_the_first_layer_is_drawn_anew_at_its_time_by_fastmeta_alone(tiny_teacher, reference):
    scales = {}
    for name in ("fast", "fastmeta"):
        fast = method(tiny_teacher, reference, name, warmup=1, reset_after=2, lr_g=1e-4)
        scales[name] = []
        for epoch in range(4):
            seed_everything(epoch)
            fast.begin(epoch)
            scales[name].append(fast.generator.body[0].weight.abs().mean().item())
    assert scales["fast"] == [1.0] * 4
    assert scales["fastmeta"][:2] == [1.0] * 2
    assert scales["fastmeta"][2] == scales["fastmeta"][3] < 0.05  # the published scale has mean 0, not 1


def test_reset_first_layer_touches_nothing_else(tiny_teacher, reference):
    generator = method(tiny_teacher, reference, width=16, latent_size=64).generator
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    torch.nn.init.ones_(generator.body[0].bias)
    reset_first_layer(generator)
    changed = {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"start.0.weight", "start.0.bias", "body.0.weight"}
    assert generator.start[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert generator.start[0].bias.abs().max() == generator.body[0].bias.abs().max() == 0


def test_only_the_generator_learns_and_its_running_statistics_are_those_of_the_inner_one(tiny_teacher, reference):
    meta = method(tiny_teacher, reference)
    before = [value.clone() for network in (meta.teacher, meta.student) for value in network.state_dict().values()]
    made = made_by(meta, 0)
    after = [value for network in (meta.teacher, meta.student) for value in network.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(value.grad is None for network in (meta.teacher, meta.student) for value in network.parameters())
    assert (made.count, made.optimiser_steps, made.teacher_queries) == (6, 3, 24)
    assert not isinstance(meta, FreshSynthesizer)
    assert int(meta.generator.body[0].num_batches_tracked) == 3
    assert torch.equal(meta.generator.body[0].running_mean, meta.working.body[0].running_mean)


def test_later_syntheses_start_better(tiny_teacher, reference):
    meta = method(tiny_teacher, reference, synthesis_batch_size=12, oh=1.0, bn=1.0, adv=0.0, bn_momentum=0.0)
    losses = [made_by(meta, epoch).terms["loss"] for epoch in range(16)]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("name", ["fast", "fastmeta"])
def test_a_resumed_run_makes_what_the_uninterrupted_one_makes(tiny_teacher, reference, name):
    one, other = (method(tiny_teacher, reference, name, warmup=3, reset_after=1) for _ in range(2))
    for epoch in range(2):
        made_by(one, epoch)
    state = copy.deepcopy({key: part.state_dict() for key, part in one.parts().items()})
    for key, part in other.parts().items():
        part.load_state_dict(state[key])
    for epoch in (2, 3):
        found = [made_by(run, epoch) for run in (one, other)]
        assert found[0].terms == found[1].terms
        assert torch.equal(found[0].images, found[1].images)


def test_a_teacher_without_batchnorm_is_refused(tiny_teacher, reference):
    _, card = load_model(tiny_teacher, reference)
    card = card.model_copy(update={"dataset": card.dataset.model_copy(update={"image_size": 32})})
    teacher, student = build_model("lenet5", 10, 1, 32), build_model("lenet5half", 10, 1, 32)
    with pytest.raises(UserError, match="BatchNorm layers"):
        build_method("fast", teacher, student, card, FastSettings(**SMALL), reference)


def test_fast_path_agrees_with_reference(tiny_teacher, reference):
    """To 1e-3 (fp32 on this path; bf16 hardware: 3e-2)."""
    fast = Runtime.create("fast", "cpu")
    found = [made_by(method(tiny_teacher, runtime, lr_g=1e-4), 0).terms for runtime in (reference, fast)]
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-3 if fast.dtype == torch.float32 else 3e-2)


def test_both_keep_their_generator():
    assert METHODS["fast"].generator
    assert METHODS["fastmeta"].generator
