"""Five seeds of the chaos runner, and what it tells apart. `make chaos` runs a hundred."""

import os
import subprocess
import sys

import pytest
from chaos import artefacts, chaos, family, kind, left_over, table, uninterrupted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return uninterrupted(tmp_path_factory.mktemp("chaos") / "whole")


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_workflow_ends_with_the_same_bytes(seed, whole, tmp_path):
    wanted, seconds = whole
    assert {"results/digits_wrn162_wrn161.json", "results/banks/digits_wrn162/init.lmdb"} < set(wanted)
    outcome = chaos(tmp_path / "work", seed, wanted, seconds)
    assert outcome.good, table([outcome], seconds)
    assert outcome.killed


def test_what_differs_is_seen(tmp_path):
    (tmp_path / "results" / "checkpoints" / "x").mkdir(parents=True)
    (tmp_path / "results" / "a.png").write_bytes(b"1")
    (tmp_path / "results" / "cost.json").write_bytes(b"1")
    before = artefacts(tmp_path)
    assert list(before) == ["results/a.png"]
    assert left_over(tmp_path) == []
    (tmp_path / "results" / "a.png").write_bytes(b"2")
    (tmp_path / "results" / "checkpoints" / "x" / "state.pt").write_bytes(b"")
    (tmp_path / "results" / ".b.partial").write_bytes(b"")
    assert artefacts(tmp_path)["results/a.png"] != before["results/a.png"]
    assert left_over(tmp_path) == ["results/.b.partial", "results/checkpoints/x/state.pt"]


def test_processes_are_told_apart():
    assert kind("/venv/bin/python3 /venv/bin/dfkd distill --teacher x") == "stage distill"
    assert kind("/venv/bin/python -m snakemake --snakefile /x/workflow/Snakefile") == "Snakemake"
    assert kind("/bin/bash -c set -euo pipefail; dfkd distill --teacher x") == "shell"
    child = subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
    try:
        while len(found := family(child.pid)) < 2:
            assert child.poll() is None
        assert child.pid in found
        assert os.getpid() not in found
    finally:
        for pid in family(child.pid):
            os.kill(pid, 9)
        child.wait()
