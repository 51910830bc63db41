"""When what happens: turns and their numbers, the student's rate."""

import math

import pytest

from dfkd.distillation.schedule import Turn, count_syntheses, count_turns, rate_at, turns
from dfkd.methods import METHODS, DDASettings, DFADSettings, FastSettings, MethodSettings, NAYERSettings


def test_an_epoch_is_rounds_of_a_synthesis_and_its_student_steps():
    found = list(turns(MethodSettings(epochs=2, rounds=2, kd_steps=2)))
    assert found[:6] == [
        Turn(0, 0, -1, False), Turn(0, 0, 0, False), Turn(0, 0, 1, False),
        Turn(0, 1, -1, False), Turn(0, 1, 0, False), Turn(0, 1, 1, True),
    ]  # fmt: skip
    assert [turn._replace(epoch=0) for turn in found[6:]] == found[:6]
    assert {turn.epoch for turn in found[6:]} == {1}


def test_the_warm_up_synthesises_and_leaves_the_student_alone():
    settings = MethodSettings(epochs=3, warmup=1, warmup_rounds=3, rounds=1, kd_steps=2)
    found = list(turns(settings))
    assert found[:3] == [Turn(0, 0, -1, False), Turn(0, 1, -1, False), Turn(0, 2, -1, True)]
    assert found[3:6] == [Turn(1, 0, -1, False), Turn(1, 0, 0, False), Turn(1, 0, 1, True)]
    assert len(found) == 9


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
@pytest.mark.parametrize(("rounds", "warmup_rounds", "kd_steps"), [(1, 1, 1), (3, 2, 4), (2, 5, 1)])
def test_the_counts_are_those_of_the_turns(epochs, warmup, rounds, warmup_rounds, kd_steps):
    settings = MethodSettings(epochs=epochs, warmup=warmup, rounds=rounds, warmup_rounds=warmup_rounds, kd_steps=kd_steps)
    found = list(turns(settings))
    assert len(found) == count_turns(settings)
    assert sum(turn.step == -1 for turn in found) == count_syntheses(settings)
    assert [turn.epoch for turn in found if turn.last] == list(range(epochs))  # once an epoch, and in order
    assert [turn[:3] for turn in found] == sorted(turn[:3] for turn in found)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_its_run_with_a_student_step(method):
    settings = METHODS[method].settings()
    assert settings.epochs > settings.warmup
    assert count_turns(settings) - count_syntheses(settings) == (
        (settings.epochs - settings.warmup) * settings.rounds * settings.kd_steps
    )
    last = settings.model_copy(update={"epochs": settings.warmup + 1})
    *_, turn = turns(last)
    assert turn == Turn(settings.warmup, settings.rounds - 1, settings.kd_steps - 1, True)


def test_cosine_to_zero():
    rates = [rate_at(DDASettings(), epoch) for epoch in (0, 100, 199)]
    assert rates == pytest.approx([0.1, 0.05, 6.17e-6], rel=1e-3)


def test_cosine_begins_after_the_warm_up_and_ends_at_the_least_rate():
    settings = FastSettings()  # 220 epochs, 20 of them warm-up, 0.2 to 2e-4
    assert [rate_at(settings, epoch) for epoch in (0, 10, 19, 20)] == [0.2] * 4
    assert rate_at(settings, 120) == pytest.approx((0.2 + 2e-4) / 2)
    assert rate_at(settings, 219) == pytest.approx(2e-4 + (0.2 - 2e-4) * (1 + math.cos(math.pi * 199 / 200)) / 2)
    falling = [rate_at(NAYERSettings(), epoch) for epoch in range(20, 120)]
    assert falling == sorted(falling, reverse=True)
    assert min(falling) > 2e-4


def test_multistep():
    settings = DFADSettings()
    assert settings.milestones == [99, 199]  # its code steps the schedule before an epoch: the 100th is the first at 0.01
    rates = [rate_at(settings, epoch) for epoch in (0, 98, 99, 198, 199, 499)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    half = settings.model_copy(update={"milestones": [2, 2, 5], "gamma": 0.5, "lr": 1.0})
    assert [rate_at(half, epoch) for epoch in (1, 2, 4, 5)] == [1.0, 0.25, 0.25, 0.125]
