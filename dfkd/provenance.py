"""Where an artefact comes from and what it cost."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd import __version__
from dfkd.energy import Meter

if TYPE_CHECKING:
    from dfkd.runtime import Runtime

LIBRARIES = ("torch", "torchvision", "numpy", "diffusers", "transformers", "lmdb", "h5py", "safetensors", "scikit-learn")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of python, this package and the libraries that decide a result."""
    found = {"python": platform.python_version(), "dfkd": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def revision() -> str:
    """The source revision of a checkout, with `+changes` for uncommitted edits of the package; `unknown` for a wheel."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", str(root))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changes else commit


@dataclass
class Cost:
    """What a stage took, over all its attempts. Kept apart from artefacts whose bytes must not depend on time."""

    seconds: float = 0.0
    images: int = 0  # images synthesised
    teacher_queries: int = 0  # images that the teacher classified
    cached_answers: int = 0  # that it did not have to classify again, since its answers were kept
    optimiser_steps: int = 0
    peak_memory: int = 0  # bytes
    energy: float | None = None  # joule, as of the last `as_dict`; None unless the same meters told all attempts
    energy_meters: str = ""  # whose sum it is, such as `rapl, nvml`
    _meter: Meter | None = field(default=None, init=False, repr=False, compare=False)
    _earlier: float | None = field(default=None, init=False, repr=False, compare=False)  # joules of earlier attempts

    @contextmanager
    def measure(self, runtime: Runtime) -> Iterator[Cost]:
        """Add the wall-clock time of the block and its energy, where the machine tells; note the peak memory at its end."""
        meter = self._meter or self._start_meter(runtime)
        meter.begin()
        begin = time.perf_counter()
        try:
            yield self
        finally:
            self.seconds += time.perf_counter() - begin
            meter.end()
            self.peak_memory = max(self.peak_memory, runtime.peak_memory())

    def _start_meter(self, runtime: Runtime) -> Meter:
        """The meter of this attempt; what earlier ones took counts if the same meters told it."""
        self._meter = Meter(runtime.energy_counters())
        first, same = self.seconds == 0, self.energy_meters == self._meter.sources
        self._earlier = 0.0 if first else self.energy if same else None
        self.energy_meters = self._meter.sources
        return self._meter

    def as_dict(self) -> dict[str, float | int | str | None]:
        """For JSON and for checkpoints: `Cost(**cost.as_dict())` goes on from here."""
        if self._meter is not None:
            joules = self._meter.joules()
            self.energy = None if joules is None or self._earlier is None else self._earlier + joules
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("_")}
