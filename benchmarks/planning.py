"""How long Snakemake plans a large campaign: before anything is there, and once all of it is."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.settings import Options
from benchmarks.table import Row, Section
from dfkd.campaigns import SCRATCH
from dfkd.methods import ALIASES, METHODS

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
NAME = "planning"
TARGET = f"results/campaigns/{NAME}.html"
TEACHERS = ("wrn402", "wrn401", "wrn282", "wrn162", "resnet34", "resnet56", "vgg11", "vgg13")
SEEDS = 3


@dataclass(frozen=True)
class Planned:
    """One dry run."""

    seconds: float  # from start to end of the process
    cpu: float
    peak: int  # bytes
    jobs: int
    output: str


def campaign_methods() -> list[str]:
    """Every method, under its first name."""
    return [name for name in METHODS if name not in ALIASES]


def make_campaign(folder: Path, jobs: int) -> int:
    """A working directory whose campaign has at least `jobs` jobs: the config of this checkout, all methods, three seeds.

    Returns:
        How many pairs it has.
    """
    shutil.copytree(ROOT / "config", folder / "config", dirs_exist_ok=True)
    methods = campaign_methods()
    of_a_pair = len(methods) * (4 * SEEDS + 1) + 1  # distil, evaluate, pictures, page of the bank a seed; result; comparison
    count = -(-jobs // of_a_pair)
    students = (f"wrn{depth}{width}" for width in range(1, 9) for depth in range(10, 47, 6))
    pairs = [f"{teacher}_{student}" for student, teacher in itertools.islice(itertools.product(students, TEACHERS), count)]
    content = {
        "title": "Planning", "methods": [*methods, SCRATCH], "datasets": ["cifar10"], "pairs": pairs, "seeds": SEEDS,
    }  # fmt: skip
    (folder / "config" / "campaigns" / f"{NAME}.yaml").write_text(yaml.safe_dump(content))
    return len(pairs)


def snakemake(folder: Path, *words: str) -> Planned:
    """One Snakemake on this checkout's workflow in a process of its own; a `RuntimeError` with its output if it fails."""
    answer = folder / "answer.json"
    command = [sys.executable, "-m", "benchmarks.plan_child", str(answer), *words]
    place = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(folder), "--cores", "1", TARGET]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    done = subprocess.run([*command, *place], capture_output=True, text=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - begin
    output = done.stdout + done.stderr
    found = json.loads(answer.read_text()) if answer.exists() else {"status": done.returncode}
    answer.unlink(missing_ok=True)
    if found["status"]:
        raise RuntimeError(f"snakemake {' '.join(words)} failed:\n{output[-2000:]}")
    total = re.search(r"^total +(\d+)$", output, re.MULTILINE)
    planned = Planned(seconds, found["cpu"], found["peak"], int(total[1]) if total else 0, output)
    logger.info("%s: %.1f s, %.1f s of CPU, %.2f GB", " ".join(words), seconds, planned.cpu, planned.peak / 1e9)
    return planned


def plan(folder: Path) -> Planned:
    """A dry run."""
    return snakemake(folder, "--dry-run", "--quiet", "rules")


def finish(folder: Path) -> None:
    """Every output, empty, with Snakemake's records, as if every job had run."""
    snakemake(folder, "--finish", "--quiet")


def measure(options: Options, folder: Path) -> Section:
    """A campaign planned from nothing, and again once it is complete."""
    place = folder / "plan"
    place.mkdir()
    pairs = make_campaign(place, options.plan_jobs)
    fresh = plan(place)
    finish(place)
    again = plan(place)
    if again.jobs or "Nothing to be done" not in again.output:
        raise RuntimeError(f"the finished campaign would run again:\n{again.output[-2000:]}")
    size = f"{len(campaign_methods())} methods and scratch × {pairs} pairs × {SEEDS} seeds"
    rows = []
    for name, planned in (("from nothing", fresh), ("once complete", again)):
        called = f"plan {fresh.jobs:,} jobs {name}"
        targets = ("≤ 60", "≤ 2") if fresh.jobs >= 10_000 else ("", "")
        rows.append(Row(called, planned.seconds, "s", targets[0], f"{planned.cpu:.1f} s of CPU; {size}"))
        rows.append(Row(f"{called}: peak", planned.peak / 2**30, "GiB", targets[1]))
    samples = {name: [planned.seconds] for name, planned in (("plan from nothing", fresh), ("plan once complete", again))}
    return Section("Planning a campaign", rows, samples)
