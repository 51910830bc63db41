"""Made-up machines: what is missing is said, and what to do about it."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from dfkd import runtime
from dfkd.doctor import machine
from dfkd.doctor.machine import CompileCheck
from dfkd.energy import Counter, Found


def made_up_torch(gpus=(), cuda="13.2"):
    properties = [SimpleNamespace(name=name, total_memory=memory, major=8, minor=0) for name, memory in gpus]
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=lambda index: properties[index],
        ),
        version=SimpleNamespace(cuda=cuda),
        device=torch.device,
    )


def marks(findings):
    return {finding.name: finding.mark for finding in findings}


def test_a_cpu_with_and_without_amx(monkeypatch, tmp_path):
    flags = {"flags": "fpu sse avx512f", "model name": "Some CPU"}
    monkeypatch.setattr(runtime, "_cpu_info", lambda key: flags[key])
    absent, cpu, precision = machine.check_devices(made_up_torch(), tmp_path / "none")
    assert (absent.name, absent.mark, absent.says) == ("GPU", "better", "none")
    assert cpu.says == "Some CPU"
    assert (precision.mark, precision.says) == ("better", "`fast` is fp32: no AMX for bf16")
    flags["flags"] += " amx_bf16"
    *_, precision = machine.check_devices(made_up_torch(), tmp_path / "none")
    assert (precision.mark, precision.says, precision.remedy) == ("ok", "`fast` multiplies in bf16 (AMX)", "")


def test_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "multiplies_bf16", lambda device: device.index == 0)
    found = machine.check_devices(made_up_torch([("A100", 80 * 2**30), ("T4", 15.5 * 2**30)]), tmp_path)
    assert [finding.says for finding in found[::2]] == [
        "A100, 80 GiB, compute capability 8.0",
        "T4, 16 GiB, compute capability 8.0",
    ]
    assert [finding.mark for finding in found] == ["ok", "ok", "ok", "better"]


def test_a_gpu_that_torch_does_not_see(tmp_path):
    (tmp_path / "0000:01:00.0").mkdir()
    blind = machine.check_devices(made_up_torch(cuda=None), tmp_path)[0]
    assert "built without CUDA" in blind.says
    assert "pytorch.org" in blind.remedy
    old = machine.check_devices(made_up_torch(), tmp_path)[0]
    assert "torch (CUDA 13.2) does not see it" in old.says
    assert "driver" in old.remedy


def child(program, limit=60.0):
    check = CompileCheck((sys.executable, "-c", program), limit)
    finding = check.finding()
    assert check.child.poll() is not None
    assert not machine.Path(check.cache.name).exists()
    return finding


def test_a_child_that_compiles():
    finding = child("import os; assert os.path.isdir(os.environ['TORCHINDUCTOR_CACHE_DIR'])")
    assert (finding.name, finding.mark) == ("torch.compile", "ok")
    assert finding.says.startswith("works (")


@pytest.mark.parametrize(
    ("text", "says", "remedy"),
    [
        (
            "torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found",
            "no working C++ compiler",
            "apt install g++",
        ),
        (
            "main.cpp:2:10: fatal error: Python.h: No such file or directory",
            "Python.h: No such file",
            "apt install python3-dev",
        ),
        ("RuntimeError: Failed to find C compiler. Please specify", "no working C++ compiler", "apt install g++"),
        ("Traceback\nAssertionError: wrong sum\n", "AssertionError: wrong sum", "leave `compile` off"),
        ("", "fails without a word", "leave `compile` off"),
    ],
)
def test_a_child_that_fails(text, says, remedy):
    finding = child(f"import sys; sys.stderr.write({text!r}); sys.exit(1)")
    assert (finding.mark, finding.needed) == ("better", False)
    assert says in finding.says
    assert remedy in finding.remedy


def test_a_compiler_that_hangs_is_ended_with_what_it_started(tmp_path):
    program = f"""
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(grandchild.pid))
open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(600)
"""
    check = CompileCheck((sys.executable, "-c", program), limit=600.0)
    while not (tmp_path / "ready").exists():
        assert check.child.poll() is None
    check.limit = 0.0
    assert "not done after 0 s" in check.finding().says
    pid = int((tmp_path / "pid").read_text())
    for _ in range(600):  # killed, and perhaps not gone yet on a busy machine
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.strip()
        if state == "" or state.startswith("Z"):
            break
        time.sleep(0.05)
    assert state in ("", "Z") or state.startswith("Z")  # gone, or waiting for init to see that it is
    check.stop()  # a second time changes nothing


def test_nothing_to_compile_with_starts_no_child(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    finding = machine.start_compiling(made_up_torch())
    assert (finding.mark, finding.says) == ("better", "no C++ compiler (g++ or clang++)")
    assert "apt install g++" in finding.remedy
    monkeypatch.setattr(runtime, "can_compile", lambda device: False)
    assert "no Triton" in machine.start_compiling(made_up_torch([("A100", 1)])).says


def test_what_the_child_compiles_is_a_program():
    compile(machine.PROGRAM, "child", "exec")


def test_cores(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 16)
    assert (machine.check_cores(4).mark, machine.check_cores(4).says) == ("ok", "4 of 16; torch takes 4 thread(s)")
    assert machine.check_cores(1).mark == "better"
    assert "OMP_NUM_THREADS" in machine.check_cores(1).remedy


def test_memory(tmp_path):
    info, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n")
    limit.write_text("max\n")
    assert (machine.check_memory(info, limit).mark, machine.check_memory(info, limit).says) == ("ok", "32 GiB free of 62 GiB")
    limit.write_text(f"{2 * 2**30}\n")
    assert (machine.check_memory(info, limit).mark, machine.check_memory(info, limit).says) == (
        "better",
        "2.0 GiB free of 2.0 GiB",
    )
    assert machine.check_memory(info, tmp_path / "absent").mark == "ok"
    assert machine.check_memory(tmp_path / "absent").says == "not known"


def test_disks(tmp_path):
    def usage(free):
        return lambda folder: SimpleNamespace(free=free)

    full = machine.check_disk("disk", tmp_path, usage(10 * 2**20))
    assert (full.mark, full.needed) == ("missing", True)
    assert full.says == f"0.0 GiB free in {tmp_path}"
    assert "make space" in full.remedy
    assert (machine.check_disk("disk", tmp_path, usage(2 * 2**30)).mark) == "better"
    assert (machine.check_disk("disk", tmp_path, usage(20 * 2**30)).mark) == "ok"

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    closed = machine.check_disk("temporary files", tmp_path, usage(20 * 2**30), refuse)
    assert (closed.mark, closed.needed) == ("missing", True)
    assert "Permission denied" in closed.says
    assert "TMPDIR" in closed.remedy
    assert list(tmp_path.iterdir()) == []
    assert "No such file" in machine.check_disk("disk", tmp_path / "absent").says


def test_energy():
    counter = Counter("rapl", lambda: 0, 1e-6, 10)
    both = machine.check_energy(["a"], lambda: Found((counter, counter)), lambda uuid: Found((counter,)))
    assert [(finding.mark, finding.says) for finding in both] == [("ok", "RAPL, 2 package(s)"), ("ok", "NVML")]
    closed, blind = machine.check_energy(
        ["a"], lambda: Found(lack="/sys/x is not readable for this user"), lambda uuid: Found(lack="no NVML")
    )
    assert (closed.mark, blind.mark, blind.says) == ("better", "better", "no NVML")
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in closed.remedy
    (virtual,) = machine.check_energy([], lambda: Found(lack="no package"))
    assert "energy: null" in virtual.remedy
