"""What a step allocates at most, tensor by tensor: on the CPU from torch's profiler, which hears of every allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at most at a time during `step`, beyond those that were there before. Run it once before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return _highest(_allocations(profiler))


def _allocations(profiler: Any) -> list[tuple[int, int]]:
    """When how many bytes were allocated (freed: negative)."""
    events = profiler.profiler.kineto_results.events()
    return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]


def _highest(changes: list[tuple[int, int]]) -> int:
    now = highest = 0
    for _, change in sorted(changes, key=lambda found: found[0]):
        now += change
        highest = max(highest, now)
    return highest
