"""Devices, precision, compilation, cores, memory, disks, energy meters."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfkd.doctor.finding import Finding, size
from dfkd.energy import Found, gpu, packages

LEAST_DISK, GOOD_DISK = 2**30, 10 * 2**30  # bytes: below the first no run ends; banks and downloaded weights fill the second
GOOD_MEMORY = 4 * 2**30  # bytes that the digits run can be at ease in; its stages peak at 1 GiB each
COMPILE_LIMIT = 120.0  # seconds; 15 of CPU time were measured, which a busy machine may stretch to minutes
NVIDIA = Path("/proc/driver/nvidia/gpus")  # there where the kernel's driver is loaded

# What a child process compiles: small, but through all of Inductor, and on the device that a run would take.
PROGRAM = """
import torch
device = "cuda" if torch.cuda.is_available() else "cpu"
function = torch.compile(lambda x: (x * 2).sin().sum(), dynamic=False)
x = torch.arange(8.0, device=device)
assert torch.allclose(function(x), (x * 2).sin().sum(), atol=1e-4)
"""
# What Inductor prepares for large programs takes longer than this one: workers, headers, trials of vector instructions.
QUICK = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
}


def check_devices(torch: Any, driver: Path = NVIDIA) -> list[Finding]:
    """The GPUs with their memory, or why there is none, and whether bf16 is multiplied in hardware."""
    from dfkd.runtime import cpu_name, multiplies_bf16

    findings = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        own = torch.cuda.get_device_properties(index)
        says = f"{own.name}, {size(own.total_memory)}, compute capability {own.major}.{own.minor}"
        findings.append(Finding("device", f"cuda:{index}", "ok", says))
        findings.append(_precision(f"cuda:{index}", multiplies_bf16(torch.device("cuda", index)), "tensor cores"))
    if findings:
        return findings
    there = driver.is_dir() and any(driver.iterdir())
    if there and torch.version.cuda is None:
        says, remedy = "there is one, but this torch was built without CUDA", "install torch from https://pytorch.org with CUDA"
    elif there:
        says = f"there is one, but torch (CUDA {torch.version.cuda}) does not see it"
        remedy = "update the NVIDIA driver, or look into CUDA_VISIBLE_DEVICES"
    else:
        says, remedy = "none", "digits takes minutes without; for CIFAR at published budgets take a machine with one"
    findings.append(Finding("device", "GPU", "better", says, remedy))
    findings.append(Finding("device", "cpu", "ok", cpu_name()))
    return [*findings, _precision("cpu", multiplies_bf16(torch.device("cpu")), "AMX")]


def _precision(device: str, bf16: bool, by: str) -> Finding:
    if bf16:
        return Finding("device", f"{device}, precision", "ok", f"`fast` multiplies in bf16 ({by})")
    remedy = "nothing on this machine; GPUs from Ampere on and CPUs with AMX multiply bf16"
    return Finding("device", f"{device}, precision", "better", f"`fast` is fp32: no {by} for bf16", remedy)


class CompileCheck:
    """A child process that compiles a tiny function while other checks run."""

    def __init__(self, words: Sequence[str] = (sys.executable, "-c", PROGRAM), limit: float = COMPILE_LIMIT) -> None:
        """Start the child, with a cache of its own so that it compiles indeed."""
        self.cache = tempfile.TemporaryDirectory(prefix="dfkd-doctor-", ignore_cleanup_errors=True)
        self.limit, self.begin = limit, time.monotonic()
        environment = {**os.environ, **QUICK, "TORCHINDUCTOR_CACHE_DIR": self.cache.name, "TRITON_CACHE_DIR": self.cache.name}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        self.child = subprocess.Popen(
            list(words), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )

    def finding(self) -> Finding:
        """Wait for it, up to the limit."""
        try:
            status = self.child.wait(max(0.0, self.limit - (time.monotonic() - self.begin)))
        except subprocess.TimeoutExpired:
            self.stop()
            return self.lack(f"not done after {self.limit:.0f} s: the machine is busy, or the compiler hangs")
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        self.stop()
        if status:
            return self.lack(_cause(text))
        return Finding("device", "torch.compile", "ok", f"works ({time.monotonic() - self.begin:.0f} s for a tiny function)")

    def stop(self) -> None:
        """End the child and what it started, and remove what they wrote."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, 9)  # a compiler that hangs is a child of it
            self.child.wait()
        self.log.close()
        self.cache.cleanup()

    @staticmethod
    def lack(says: str) -> Finding:
        """That it does not work, and what helps."""
        remedy = "nothing for a run as configured (`compile: false`); else "
        if "Python.h" in says:
            remedy += "install Python's headers, e.g. `apt install python3-dev`"
        elif "compiler" in says:
            remedy += "install one, e.g. `apt install g++`"
        else:
            remedy += "leave `compile` off"
        return Finding("device", "torch.compile", "better", says, remedy)


def _cause(text: str) -> str:
    """What went wrong, of a traceback that is a hundred lines long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for word in ("Python.h", "fatal error", "InvalidCxxCompiler", "Failed to find C compiler", "Error:"):
        line = next((line for line in lines if word in line), "")
        if line:
            return "no working C++ compiler" if "ompiler" in word else line[:160]
    return lines[-1][:160] if lines else "it fails without a word"


def start_compiling(torch: Any) -> CompileCheck | Finding:
    """A child that compiles, or the finding where there is nothing to compile with."""
    from dfkd.runtime import can_compile

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if can_compile(device):
        return CompileCheck()
    return CompileCheck.lack("no Triton here" if device.type == "cuda" else "no C++ compiler (g++ or clang++)")


def check_cores(threads: int) -> Finding:
    """Cores that this process may use, and how many threads torch takes of them."""
    cores = len(os.sched_getaffinity(0))
    says = f"{cores} of {os.cpu_count()}" if cores != os.cpu_count() else f"{cores}"
    if threads < cores:
        remedy = "a rule sets them to its `threads`; by hand: OMP_NUM_THREADS"
        return Finding("machine", "cores", "better", f"{says}; torch takes {threads} thread(s)", remedy)
    return Finding("machine", "cores", "ok", f"{says}; torch takes {threads} thread(s)")


def check_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    """Free memory, within what a container may have."""
    try:
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()}
        total, free = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, KeyError, IndexError, ValueError):
        return Finding("machine", "memory", "better", "not known", "nothing: this system has no /proc/meminfo")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit: `max`
        total = min(total, int(limit.read_text()))
    free = min(free, total)
    if free >= GOOD_MEMORY:
        return Finding("machine", "memory", "ok", f"{size(free)} free of {size(total)}")
    remedy = f"end other programs, or run fewer jobs at once (--cores, --resources mem_mb): {size(GOOD_MEMORY)} are comfortable"
    return Finding("machine", "memory", "better", f"{size(free)} free of {size(total)}", remedy)


def check_disk(
    name: str, folder: Path, usage: Callable[[Path], Any] = shutil.disk_usage, write: Callable[[Path], None] | None = None
) -> Finding:
    """Free space of a folder, and whether files can be made in it."""
    try:
        free = usage(folder).free
        (write or _write)(folder)
    except OSError as error:
        says = f"{folder}: cannot be written to ({error.strerror or error})"
        return Finding(
            "machine", name, "missing", says, "make space, or work in another folder (for temporary files: TMPDIR)", True
        )
    says = f"{size(free)} free in {folder}"
    if free < LEAST_DISK:
        return Finding("machine", name, "missing", says, f"make space: {size(LEAST_DISK)} at the least", True)
    if free < GOOD_DISK:
        return Finding(
            "machine", name, "better", says, "enough for digits; banks of CIFAR's size and downloaded weights want more"
        )
    return Finding("machine", name, "ok", says)


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"dfkd")


def check_energy(
    uuids: Sequence[str] = (), rapl: Callable[[], Found] = packages, nvml: Callable[[str], Found] = gpu
) -> list[Finding]:
    """The meters that a cost's energy is read from."""
    cpu = rapl()
    if cpu.counters:
        findings = [Finding("machine", "energy, CPU", "ok", f"RAPL, {len(cpu.counters)} package(s)")]
    else:
        remedy = "nothing: results say `energy: null`; virtual machines have no meter"
        if "not readable" in cpu.lack:
            remedy = "`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` until the next boot, if other users may know"
        findings = [Finding("machine", "energy, CPU", "better", cpu.lack, remedy)]
    for index, uuid in enumerate(uuids):
        found = nvml(uuid)
        if found.counters:
            findings.append(Finding("machine", f"energy, cuda:{index}", "ok", "NVML"))
        else:
            remedy = "nothing: it needs a whole GPU from Volta on and the driver's libnvidia-ml"
            findings.append(Finding("machine", f"energy, cuda:{index}", "better", found.lack, remedy))
    return findings
