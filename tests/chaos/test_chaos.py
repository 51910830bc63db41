"""Five seeds of the chaos runner, and what it tells apart. `make chaos` runs a hundred."""

import os
import subprocess
import sys
import time

import pytest
from chaos import Chaos, Outcome, plan, table
from processes import family, kind_of, wait_until_idle
from workplace import STUDENT, TARGET, Workplace, holds_times, until_student


@pytest.fixture(scope="module")
def chaos(tmp_path_factory, warm):
    return Chaos(tmp_path_factory.mktemp("chaos").resolve(), warm.program, STUDENT)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_workflow_ends_with_the_same_bytes(seed, chaos):
    outcome = chaos.run(seed)
    assert outcome.good, table([outcome])
    assert outcome.killed
    assert outcome.starts >= 2


def test_every_artefact_is_compared(chaos):
    runs, banks, teacher = "results/runs/dda/digits_wrn101_wrn101/seed0", "results/banks/digits_wrn101", "results/teachers/"
    wanted = {
        "data": "digits.h5 digits.test.h5",
        teacher + "digits_wrn101": "weights.safetensors weights.json history.csv",
        banks + "/shards": "1-of-2.lmdb 2-of-2.lmdb",
        banks: "init.lmdb init.history.csv variations.lmdb rejected.lmdb variations.history.csv filter.png",
        runs: "student.safetensors student.json best.safetensors bank.lmdb history.csv",
    }
    assert {f"{folder}/{name}" for folder, names in wanted.items() for name in names.split()} < set(chaos.wanted)
    later = dict.fromkeys(("results/x.html", "results/metrics.json", "results/predictions.h5", TARGET))
    assert until_student(chaos.wanted | later) == chaos.wanted


def test_the_plans_of_a_hundred_seeds_hold_every_kind():
    plans = [plan(seed) for seed in range(100)]
    assert plans == [plan(seed) for seed in range(100)]
    assert {len(kills) for kills in plans} == {1, 2, 3}
    assert {kill.kind for kills in plans for kill in kills} == {"stage", "Snakemake", "shell", "data worker"}
    assert {kill.kind for kills in plans[:5] for kill in kills} == {"stage", "Snakemake", "shell", "data worker"}


def test_what_differs_is_seen(tmp_path):
    place = Workplace(tmp_path / "work", tmp_path, tmp_path / "digits.lmdb")
    results = place.folder / "results"
    (results / "checkpoints" / "x").mkdir(parents=True)
    (results / "a.png").write_bytes(b"1")
    (results / "cost.json").write_bytes(b"1")
    before = place.artefacts()
    assert list(before) == ["results/a.png"]
    assert place.left_over() == []
    (results / "a.png").write_bytes(b"2")
    (results / "checkpoints" / "x" / "state.pt").write_bytes(b"")
    (results / ".b.partial").write_bytes(b"")
    assert place.artefacts()["results/a.png"] != before["results/a.png"]
    assert place.left_over() == ["results/.b.partial", "results/checkpoints/x/state.pt"]
    broken = Outcome(3, True, ["stage distill"], 2, 30.0, differing=["results/a.png"])
    assert not broken.good
    assert "| 3 | result | stage distill | 2 | results/a.png |" in table([broken])
    assert table([broken, Outcome(4)]).startswith("1 of 2 seeds")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("results/teachers/x/weights.safetensors", False),
        ("results/teachers/x/timing.csv", True),
        ("results/banks/x/init.html", False),
        ("results/runs/x/report.html", True),
        ("results/runs/x/metrics.json", False),
    ],
)
def test_only_what_holds_times_is_left_out(name, left, tmp_path):
    assert holds_times((tmp_path / name).relative_to(tmp_path)) is left


def test_processes_are_told_apart(tmp_path):
    assert kind_of(["/venv/bin/python", "warm.py"], "dfkd distill") == "stage"
    assert kind_of(["/venv/bin/python", "warm.py"], "snakemake") == "Snakemake"
    assert kind_of(["/bin/bash", "-c", "dfkd distill"], "bash") == "shell"
    # a process under a stage's name, with a child
    name = "import os, time; open('/proc/self/comm', 'w').write('dfkd teacher'); os.fork(); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", name], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while [one.kind for one in family(tmp_path)] != ["stage", "data worker"]:
            assert child.poll() is None
            assert time.monotonic() < deadline
        assert family(tmp_path)[0] == (child.pid, "stage", "stage teacher")
        assert not wait_until_idle(tmp_path, 0.1)
    finally:
        for one in family(tmp_path):
            os.kill(one.identity, 9)
        child.wait()
    assert wait_until_idle(tmp_path, 60)
