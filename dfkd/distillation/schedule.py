"""When what happens: the order of syntheses and student steps, and the student's rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from dfkd.methods import MethodSettings


class Turn(NamedTuple):
    """One thing to do: the synthesis that begins a round (`step` -1), or a student step of it. All counted from 0."""

    epoch: int
    round: int
    step: int
    last: bool  # of its epoch


def turns(settings: MethodSettings) -> Iterator[Turn]:
    """The whole run: in an epoch `rounds` times a synthesis and `kd_steps` student steps; in the warm-up, syntheses alone."""
    for epoch in range(settings.epochs):
        warm = epoch < settings.warmup
        rounds = settings.warmup_rounds if warm else settings.rounds
        steps = 0 if warm else settings.kd_steps
        for round in range(rounds):
            for step in range(-1, steps):
                yield Turn(epoch, round, step, round == rounds - 1 and step == steps - 1)


def turn_at(settings: MethodSettings, number: int) -> Turn:
    """Turn `number` of `turns`, counted from 0."""
    return next(itertools.islice(turns(settings), number, None))


def count_turns(settings: MethodSettings) -> int:
    """How many `turns` there are."""
    warm = min(settings.warmup, settings.epochs)
    return warm * settings.warmup_rounds + (settings.epochs - warm) * settings.rounds * (1 + settings.kd_steps)


def count_syntheses(settings: MethodSettings) -> int:
    """How many of them are syntheses."""
    warm = min(settings.warmup, settings.epochs)
    return warm * settings.warmup_rounds + (settings.epochs - warm) * settings.rounds


def rate_at(settings: MethodSettings, epoch: int) -> float:
    """The student's rate in an epoch counted from 0: cosine to `min_lr` over the epochs after the warm-up, or steps."""
    if settings.schedule == "multistep":
        return settings.lr * settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones)
    done = max(epoch - settings.warmup, 0) / max(settings.epochs - settings.warmup, 1)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
