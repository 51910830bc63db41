"""Energy where the machine tells: CPU packages through RAPL, an NVIDIA GPU through NVML. Imports no torch.

Both count what the whole device takes, other programs on it included. RAPL is the kernel's powercap interface
(https://docs.kernel.org/power/powercap/powercap.html); since 2020 its counters are readable by root alone unless the
administrator says otherwise. NVML counts from Volta on.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
MOST_WATTS = 1000.0  # of one CPU package: a gain beyond it is a counter that was reset, a pause beyond it may hide a wrap
INTERVAL = 1.0  # seconds between two readings of a meter: a step of training may take a millisecond, a reading does too
WATCH = 10.0  # seconds between two readings that only keep wraps from being missed; 65 kJ, the smallest span, last a minute


class Counter:
    """A register that counts energy upwards, as a sum in joule since it was opened; any thread may read it."""

    def __init__(
        self,
        source: str,
        read: Callable[[], int],
        unit: float,
        span: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the first reading; what `read` raises then is the caller's.

        Args:
            source: `rapl` or `nvml`.
            read: the register.
            unit: joule of one of its units.
            span: where it starts again at 0; None for a register that never does.
            clock: seconds.
        """
        self.source, self.span = source, span
        self._read, self._unit, self._clock = read, unit, clock
        self._lock = threading.Lock()
        self._last, self._at, self._sum = read(), clock(), 0
        self._lost = False

    def joules(self) -> float | None:
        """Joules since the counter was opened; None, and None from then on, once it cannot be known."""
        with self._lock:
            if not self._lost:
                self._advance()
            return None if self._lost else self._sum * self._unit

    def _advance(self) -> None:
        try:
            value, now = self._read(), self._clock()
        except Exception:  # NVML's own errors, OSError, a text that is no number: whatever it is, there is no reading
            self._lost = True
            return
        gained, elapsed = value - self._last, now - self._at
        if self.span is not None:
            gained += self.span if gained < 0 else 0
            most = MOST_WATTS * (elapsed + 1)  # a register is refreshed now and then: the second is for that
            self._lost = gained * self._unit > most or elapsed * MOST_WATTS > self.span * self._unit
        self._lost = self._lost or gained < 0
        self._last, self._at, self._sum = value, now, self._sum + gained


@dataclass(frozen=True)
class Found:
    """The counters of one kind on this machine, and where there is none, why."""

    counters: tuple[Counter, ...] = ()
    lack: str = ""


def packages(folder: Path | None = None) -> Found:
    """The counters of the CPU packages. Their parts and the whole board (`psys`) would be counted twice; memory is left out."""
    folder = folder or POWERCAP
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)  # AMD's have this name too
    counters = []
    for zone in zones:
        try:
            if (zone / "name").read_text().startswith("package"):
                counters.append(_package(zone))
        except PermissionError:
            return Found(lack=f"{zone / 'energy_uj'} is not readable for this user")
        except (OSError, ValueError) as error:
            return Found(lack=f"{zone} gives no reading ({error})")
    return Found(tuple(counters), "" if counters else f"no package in {folder}")


def _package(zone: Path) -> Counter:
    file = os.open(zone / "energy_uj", os.O_RDONLY)  # stays open: reading costs a system call
    span = int((zone / "max_energy_range_uj").read_text())
    return Counter("rapl", lambda: int(os.pread(file, 64, 0)), 1e-6, span)


def gpu(uuid: str, nvml: Any = None) -> Found:
    """The counter of one GPU.

    Args:
        uuid: of the device as CUDA sees it, without the `GPU-`; numbers of CUDA and NVML differ under CUDA_VISIBLE_DEVICES.
        nvml: the module `pynvml`.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return Found((Counter("nvml", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device), 1e-3),))
    except Exception as error:  # no driver, a part of a GPU (MIG), a GPU older than Volta, a driver of another version
        return Found(lack=f"NVML gives no energy of GPU {uuid} ({error})")


@functools.cache
def counters_of(uuid: str | None) -> tuple[Counter, ...]:
    """What this process reads: all CPU packages, and the GPU with this UUID if there is one. Opened once."""
    found = (*packages().counters, *(gpu(uuid).counters if uuid else ()))
    wrapping = [counter for counter in found if counter.span is not None]
    if wrapping:
        threading.Thread(target=_watch, args=(wrapping,), name="energy", daemon=True).start()
    return found


def _watch(counters: Sequence[Counter], every: float = WATCH) -> None:
    """Read now and then for ever: of two wraps between two readings one would be missed."""
    while True:
        time.sleep(every)
        for counter in counters:
            counter.joules()


def sources(counters: Sequence[Counter]) -> str:
    """The kinds of these counters for people, such as `rapl, nvml`; empty without any."""
    return ", ".join(dict.fromkeys(counter.source for counter in counters))


class Meter:
    """The energy of the blocks between `begin` and `end`, from counters that are read once a second at most.

    What the counters gain between two readings is shared out by time: blocks get the share of it that they were under way.
    So thousands of short blocks cost nothing, and what lies between them is left out.
    """

    def __init__(
        self, counters: Sequence[Counter], interval: float = INTERVAL, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.sources = sources(counters)
        self._counters, self._interval, self._clock = counters, interval, clock
        self._last = self._read()
        self._joules = None if self._last is None else 0.0
        self._at, self._begun, self._busy = clock(), 0.0, 0.0

    def begin(self) -> None:
        """A block begins."""
        if self._joules is not None:
            self._begun = self._clock()
            self._settle_after(self._interval, self._begun)

    def end(self) -> None:
        """A block ends."""
        if self._joules is not None:
            now = self._clock()
            self._busy += now - self._begun
            self._settle_after(self._interval, now)

    def joules(self) -> float | None:
        """What all blocks that have ended took; None if there is no counter, or one of them was lost."""
        if self._joules is not None and self._busy:
            self._settle_after(0.0, self._clock())
        return self._joules

    def _settle_after(self, seconds: float, now: float) -> None:
        """Read the counters and share out what they gained, if the last reading is at least so many seconds old."""
        elapsed = now - self._at
        if elapsed < seconds or elapsed <= 0 or self._joules is None or self._last is None:
            return
        total = self._read()
        self._joules = None if total is None else self._joules + (total - self._last) * self._busy / elapsed
        self._last, self._at, self._busy = total, now, 0.0

    def _read(self) -> float | None:
        readings = [counter.joules() for counter in self._counters]
        known = [reading for reading in readings if reading is not None]
        return sum(known) if known and len(known) == len(readings) else None
