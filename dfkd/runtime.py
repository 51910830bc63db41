"""Device, precision, seeds and compilation: what every stage computes with."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from dfkd.energy import Counter, counters_of, sources
from dfkd.errors import UserError
from dfkd.gpus import take_gpus
from dfkd.launch import place, see_own_gpu
from dfkd.parallel import ALONE, Ranks

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
    ranks: Ranks = ALONE  # which of the processes that share the work; alone by default

    @classmethod
    def create(cls, precision: Precision = "fast", device: str = "auto", compile: bool = False) -> Runtime:
        """Choose the device (`auto`, `cpu`, `cuda`, `cuda:N`) and what it can do.

        `auto` and `cuda` are a GPU of this process's own where jobs share a machine (`dfkd.gpus`), or processes a job.

        Raises:
            UserError: the device does not exist here.
        """
        if device in ("auto", "cuda") and not see_own_gpu():
            take_gpus()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device {device}: no CUDA device is visible here; use --device cpu.")
        chosen = torch.device(device)
        threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        if threads > 0:
            torch.set_num_threads(threads)
        reference = precision == "reference"
        # does what use_deterministic_algorithms(…, warn_only=True) does without its import of the compiler: two seconds
        torch.set_deterministic_debug_mode("warn" if reference else "default")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a fifth of a step, decides nothing
        torch.backends.cudnn.benchmark = not reference
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not reference
        dtype = torch.float32 if reference or not multiplies_bf16(chosen) else torch.bfloat16
        wanted = compile and not reference
        if wanted and not can_compile(chosen):
            logger.info("no compiler found: running eagerly")
            wanted = False
        return cls(chosen, precision, dtype, wanted)

    @classmethod
    def create_shared(cls, precision: Precision = "fast", device: str = "auto", compile: bool = False) -> Runtime:
        """The same for a stage that several processes may share: each on the GPU with its number, joined to a group.

        Nothing is compiled there: what is summed over processes in the middle of a step is not for the compiler.
        """
        shared = place() is not None
        alone = cls.create(precision, device, compile and not shared)
        ranks = Ranks.join(alone.device)
        if shared and compile and ranks.first:
            logger.info("several processes: running eagerly")
        return replace(alone, ranks=ranks)

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

    def memory(self) -> int:
        """Bytes that the device has in all, whoever uses them: of the GPU, or the machine's as far as this process may go."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _cgroup_limit())

    def peak_memory(self) -> int:
        """Bytes: the device allocator's peak on a GPU, the process's largest resident size on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def energy_counters(self) -> tuple[Counter, ...]:
        """What tells the energy here: the CPU packages, and the GPU if the device is one; empty where nothing is readable."""
        gpu = self.device.type == "cuda"
        if gpu and self.ranks.world > 1:
            return ()  # one process sees its own GPU alone
        return counters_of(str(torch.cuda.get_device_properties(self.device).uuid) if gpu else None)

    def describe(self) -> dict[str, str | int]:
        """What the provenance of a result says of the machine; `energy` names the meters, `ranks` several processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        meters = sources(self.energy_counters())
        machine: dict[str, str | int] = {"device": self.device.type, "name": name}
        machine |= {"threads": torch.get_num_threads(), "dtype": str(self.dtype)[6:]}
        machine |= {"ranks": self.ranks.world} if self.ranks.world > 1 else {}
        return machine | ({"energy": meters} if meters else {})


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


def _cgroup_limit() -> int:
    """Bytes that a container or a cluster's job may use; a number beyond every memory where there is no limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="utf-8") as file:
                return int(file.read())
        except (OSError, ValueError):  # `max` among others
            continue
    return 1 << 62


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs here: Triton on a GPU, a C++ compiler on the CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return shutil.which("g++") is not None or shutil.which("clang++") is not None


def wide(values: torch.Tensor) -> torch.Tensor:
    """float32 where it was less, since autocast gives less; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


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
