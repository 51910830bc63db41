"""Device, precision, seeds, compilation, progress and logging: what every stage needs around its loop."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dfkd.errors import UserError

logger = logging.getLogger(__name__)
Precision = Literal["fast", "reference"]
AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Where and how a stage computes.

    `fast`: channels_last, bf16 autocast where the device multiplies bf16 in hardware, `torch.compile` on request.
    `reference`: fp32, NCHW, eager, deterministic algorithms.
    """

    device: torch.device
    precision: Precision
    dtype: torch.dtype  # of autocast; float32 means no autocast
    compile: bool

    @classmethod
    def create(cls, precision: Precision = "fast", device: str = "auto", compile: bool = False) -> Runtime:
        """Choose the device (`auto`, `cpu`, `cuda`, `cuda:N`) and what it can do.

        Raises:
            UserError: the device does not exist here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device {device}: no CUDA device is visible here; use --device cpu.")
        chosen = torch.device(device)
        threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        if threads > 0:
            torch.set_num_threads(threads)
        reference = precision == "reference"
        torch.use_deterministic_algorithms(reference, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a fifth of a step, decides nothing
        torch.backends.cudnn.benchmark = not reference
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not reference
        dtype = torch.float32 if reference or not multiplies_bf16(chosen) else torch.bfloat16
        wanted = compile and not reference
        if wanted and not can_compile(chosen):
            logger.info("no compiler found: running eagerly")
            wanted = False
        return cls(chosen, precision, dtype, wanted)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 for convolutions and products in the fast path; nothing otherwise."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def place(self, module: AnyModule) -> AnyModule:
        """Move a network to the device, in the memory format of this precision."""
        memory_format = torch.contiguous_format if self.precision == "reference" else torch.channels_last
        return module.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Move a batch [N,C,H,W] to the device, in the memory format of this precision."""
        memory_format = torch.contiguous_format if self.precision == "reference" else torch.channels_last
        return images.to(self.device, memory_format=memory_format)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile` with static shapes where it was asked for; the function itself otherwise."""
        return torch.compile(function, dynamic=False) if self.compile else function

    def peak_memory(self) -> int:
        """Bytes: the device allocator's peak on a GPU, the process's largest resident size on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def describe(self) -> dict[str, str | int]:
        """What the provenance of a result says of the machine."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {"device": self.device.type, "name": name, "threads": torch.get_num_threads(), "dtype": str(self.dtype)[6:]}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has matrix hardware for bf16: Ampere and later, or a CPU with AMX (emulation is slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return "amx_bf16" in _cpu_info("flags").split()


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return _cpu_info("model name") or "unknown CPU"


def _cpu_info(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs here: Triton on a GPU, a C++ compiler on the CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return shutil.which("g++") is not None or shutil.which("clang++") is not None


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed that depends on all keys and their order, e.g. `derive_seed(seed, "init", block)`."""
    digest = hashlib.sha256("\x1f".join(str(key) for key in keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*keys: int | str) -> None:
    """Seed torch, numpy and python from the keys."""
    seed = derive_seed(*keys)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Stopped(Exception):
    """A signal asked the stage to stop; its state is saved. `status` is 128 + the signal's number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"stopped by signal {status - 128}; run the same command again to continue")
        self.status = status


class StopRequest:
    """Notes SIGTERM and SIGINT so that a loop can save its state between two steps."""

    def __init__(self) -> None:
        self.signal = 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal != 0

    def stop(self) -> None:
        """Leave the stage. Call it after the state is saved."""
        raise Stopped(128 + self.signal)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block, SIGTERM and SIGINT only set the request."""
    request = StopRequest()
    try:
        former = {number: signal.signal(number, request._note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: signals go elsewhere
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class Steps:
    """Progress of a loop: a bar with steps/s and time left on a terminal, a plain line every 30 s in a log."""

    def __init__(self, description: str, total: int, start: int, bar: Progress | None) -> None:
        self.description, self.total, self.done, self._start = description, total, start, start
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=start, rate="", note="") if bar else None
        self._begin = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished steps; `note` is a short text such as the last epoch's figures."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._start) / max(now - self._begin, 1e-9)
        if self._bar is not None and self._task is not None:
            fields = {"rate": f"{rate:.1f}/s"} | ({"note": note} if note else {})
            self._bar.update(self._task, completed=self.done, **fields)  # type: ignore[arg-type]
        elif now - self._last > 30 or note or self.done == self.total:
            left = (self.total - self.done) / max(rate, 1e-9)
            logger.info("%s %d/%d  %.1f steps/s  %.0f s left  %s", self.description, self.done, self.total, rate, left, note)
            self._last = now


@contextlib.contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Steps]:
    """Show the progress of a loop of `total` steps, of which `start` were done in an earlier attempt."""
    if not sys.stderr.isatty():
        yield Steps(description, total, start, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Steps(description, total, start, bar)


def setup_logging(verbose: bool = False) -> None:
    """Colours on a terminal, plain dated lines in a log file."""
    level = logging.DEBUG if verbose else logging.INFO
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False)
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    for name in ("httpx", "urllib3", "matplotlib", "PIL", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
