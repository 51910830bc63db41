"""The command: what is said, in which form, with which exit status. One run of it is the real thing."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.doctor import examine, inputs, machine, software
from dfkd.doctor.finding import Finding, size

ROOT = Path(__file__).resolve().parents[2]
FINE = Finding("software", "python", "ok", "3.11")
SLOW = Finding("device", "GPU", "better", "none", "buy one")
ABSENT = Finding("inputs", "data set pets", "missing", "folder /pets is not there", "put the images there")
BROKEN = Finding("machine", "disk", "missing", "0.0 GiB free in /", "make space", needed=True)


@pytest.fixture
def quick(monkeypatch):
    """Without the child that compiles."""
    monkeypatch.setattr(machine, "start_compiling", lambda torch: machine.CompileCheck.lack("not tried"))


def printed(*findings):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    examine.print_findings(findings, console)
    return console.file.getvalue()


def test_lines():
    lines = [line.rstrip() for line in printed(FINE, SLOW, ABSENT).splitlines()]
    assert lines[0].strip() == "software"
    assert lines[1].split() == ["✓", "python", "3.11"]
    assert lines[3].split() == ["○", "GPU", "none"]
    assert lines[4].strip() == "→ buy one"
    assert lines[6].split()[:2] == ["✗", "data"]
    assert lines[-1] == "Ready for runs; 1 missing for some runs; 1 could be better."
    assert printed(FINE, BROKEN).splitlines()[-1] == "Not ready: disk missing."
    assert size(2**30) == "1.0 GiB"


def run(*words):
    return CliRunner().invoke(app, ["doctor", *words])


@pytest.mark.parametrize(("findings", "status"), [([FINE, SLOW, ABSENT], 0), ([FINE, BROKEN], 1)])
def test_exit_status(monkeypatch, findings, status):
    monkeypatch.setattr(examine, "examine", lambda *words: findings)
    assert run().exit_code == status
    done = run("--json")
    assert done.exit_code == status
    content = json.loads(done.stdout)
    assert content["ready"] is (status == 0)
    assert content["findings"][0] == {
        "section": "software", "name": "python", "mark": "ok", "says": "3.11", "remedy": "", "needed": False
    }  # fmt: skip


def test_every_lack_says_what_to_do(quick, monkeypatch):
    monkeypatch.setattr(inputs, "ask_hub", lambda address: "no network in tests")
    said = []
    found = examine.examine(ROOT / "config", offline=True, note=said.append)
    assert [finding for finding in found if finding.mark != "ok" and not finding.remedy] == []
    assert [finding for finding in found if finding.mark == "ok" and finding.remedy] == []
    names = {finding.name for finding in found}
    assert {"python", "dfkd", "torch", "libraries", "snakemake", "torch.compile", "cores", "memory", "disk"} <= names
    assert {"temporary files", "energy, CPU", "hub", "config", "weights", "data set digits", "data set cifar10"} <= names
    assert examine.lacking(found) == []
    assert "importing torch" in said


def test_without_torch_the_rest_is_told(quick, monkeypatch):
    monkeypatch.setattr(examine, "_import_torch", lambda: None)
    monkeypatch.setattr(machine, "start_compiling", None)
    found = {finding.name: finding for finding in examine.examine(ROOT / "config", offline=True)}
    assert found["torch"].mark == "missing"
    assert [finding.name for finding in examine.lacking(list(found.values()))] == ["torch"]
    assert "disk" in found
    assert "GPU" not in found


def test_a_torch_that_does_not_load_is_none(monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(examine.importlib, "import_module", broken)
    assert examine._import_torch() is None


def test_a_child_is_ended_when_a_check_fails(monkeypatch):
    check = machine.CompileCheck((sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(machine, "start_compiling", lambda torch: check)

    def fail():
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(software, "check_python", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        examine.examine(ROOT / "config", offline=True)
    assert check.child.poll() is not None


def test_a_broken_plugin_does_not_keep_the_doctor_away(tmp_path):
    """Every other command is refused before it starts."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("plugins: [a_plugin_that_is_nowhere]\n")

    def status(*words):
        command = [sys.executable, "-m", "dfkd.cli", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert (status("doctor", "--help"), status("settings", "distill")) == (0, 2)


def test_a_real_run(monkeypatch, tmp_path):
    """As it is typed, compiler and all; nothing that every run needs is missing where these tests run."""
    monkeypatch.chdir(tmp_path)
    done = run("--offline", "--json")
    assert done.exit_code == 0, done.output
    found = {item["name"]: item for item in json.loads(done.stdout)["findings"]}
    assert found["torch.compile"]["mark"] in ("ok", "better")
    assert found["config"]["mark"] == "better"
    assert found["hub"]["says"].endswith("was not asked (--offline)")
    assert list(tmp_path.iterdir()) == []
