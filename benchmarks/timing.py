"""Timing steps: marks that do not stall a GPU, and variants that take turns so that a busy machine slows all alike."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Mapping

import torch

logger = logging.getLogger(__name__)


class Clock:
    """Marks moments of a device's work; on a GPU by events, so that nothing waits until `intervals` is asked for.

    With `own`, seconds on a CPU are those that this process (all its threads) had it, not those that passed: what other
    processes take away meanwhile does not count.
    """

    def __init__(self, device: torch.device, own: bool = False) -> None:
        self._cuda = device.type == "cuda"
        self._now = time.process_time if own else time.perf_counter
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(self._now())

    def intervals(self) -> list[float]:
        """Seconds between successive marks."""
        if self._cuda:
            torch.cuda.synchronize()
            return [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(self._events)]
        return [second - first for first, second in itertools.pairwise(self._times)]


# Runs that many steps; marks the clock before the first and after each.
Variant = Callable[[int, Clock], None]


def first_call(title: str, name: str, variant: Variant, device: torch.device) -> float:
    """Run one step to warm up; seconds, in which a compiled variant compiles."""
    begin = time.perf_counter()
    clock = Clock(device)
    variant(1, clock)
    clock.intervals()
    seconds = time.perf_counter() - begin
    logger.info("%s, %s: first call %.1f s", title, name, seconds)
    return seconds


def take_turns(
    title: str, variants: Mapping[str, Variant], rounds: int, steps: int, device: torch.device, own: bool = False
) -> dict[str, list[float]]:
    """Seconds of every step of every variant: a, b, c, a, b, c, …; `own` as `Clock` has it."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, variant in variants.items():
            clock = Clock(device, own)
            variant(steps, clock)
            seconds = clock.intervals()
            found[name] += seconds
            logger.info("%s, %s: turn %d of %d, %.4g s a step", title, name, number + 1, rounds, statistics.median(seconds))
    return found
