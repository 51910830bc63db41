"""The digits workflow, killed at random moments and started again: is every artefact what it would have been?

    python tests/chaos/chaos.py --seeds 100 --output docs/chaos.md

A seed decides how often and when a process is killed with SIGKILL, and which one: Snakemake, the shell of a job, a stage.
After each kill the same command is typed again at once, as a user would, while a stage that lost its Snakemake may still be
running. The artefacts are compared with those of an uninterrupted run, byte by byte, but for what holds times by design.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGET = "results/digits_wrn162_wrn161.json"
PATIENCE = 1200  # seconds that one command may take; far more than it does
MOST_STARTS = 12
FAST = {"precision": "reference"}
CONFIG = {
    "scatter": 2,
    "teacher": {"defaults": FAST | {"epochs": 4, "schedule": "cosine"}},
    "init_bank": {"defaults": FAST | {"batches": 6, "batch_size": 20, "steps": 10}},
    "augment": {
        "defaults": FAST
        | {
            "backend": "bank-diffusion",
            "threshold": 0.0,
            "bank_diffusion": {"channels": [16, 16], "train_steps": 40, "batch_size": 16, "sampling_steps": 4},
        }
    },
}
METHOD = FAST | {"epochs": 6, "kd_steps": 4, "batch_size": 16, "synthesis_batch_size": 16, "g_steps": 4}


@dataclass
class Outcome:
    """What became of one seed."""

    seed: int
    killed: list[str] = field(default_factory=list)  # the victims, in their order
    starts: int = 0
    seconds: float = 0.0
    differing: list[str] = field(default_factory=list)  # artefacts that are not those of the uninterrupted run
    left: list[str] = field(default_factory=list)  # partial files and checkpoints that nothing will remove
    fault: str = ""

    @property
    def good(self) -> bool:
        """Whether the run ended as an uninterrupted one."""
        return not (self.differing or self.left or self.fault)


def prepare(folder: Path) -> None:
    """A working folder with a small budget and the workflow."""
    (folder / "config" / "methods").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "datasets.yaml", folder / "config")
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "config" / "methods" / "dda.yaml").write_text(yaml.safe_dump({"defaults": METHOD}))


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Snakemake in a folder, its output appended to `snakemake.log`; one thread a stage, so that equal runs are equal."""
    command = [*snakemake(folder), "--cores", "1", TARGET]
    with (folder / "snakemake.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=environment())


def snakemake(folder: Path) -> list[str]:
    """Snakemake's command in a folder, without a target."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(folder)]


def environment() -> dict[str, str]:
    """The stages run this very tree, one thread each."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def family(process: int) -> dict[int, str]:
    """The process and everything below it: identity -> what it is."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal():
            continue
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(place.name))
    found, todo = {}, [process]
    while todo:
        one = todo.pop()
        found[one] = kind(names.get(one, ""))
        todo += children.get(one, [])
    return found


def kind(command: str) -> str:
    """What a command line is: Snakemake, the shell of a job, or a stage by its name."""
    words = command.split()
    if any(Path(word).name == "dfkd" for word in words[:3]) and "bash" not in words[0]:
        place = next(index for index, word in enumerate(words) if Path(word).name == "dfkd")
        return f"stage {words[place + 1]}" if len(words) > place + 1 else "stage"
    if "snakemake" in command and "bash" not in command:
        return "Snakemake"
    return "shell" if "sh" in command else "other"


def artefacts(folder: Path) -> dict[str, str]:
    """SHA-256 of every artefact; what holds times by design is left out, or read without them."""
    found = {}
    for path in sorted(path for top in ("data", "results") for path in (folder / top).rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "cost" in path.name or {"tensorboard", "benchmarks", "checkpoints"} & set(path.parts):
            continue
        content = path.read_bytes()
        if name.endswith(".json") and b'"provenance"' in content:
            result = json.loads(content)
            result.pop("cost")
            for key in ("date", "hardware"):
                result["provenance"].pop(key)
            content = json.dumps(result, sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def left_over(folder: Path) -> list[str]:
    """Files that should not outlive a finished workflow."""
    partial = list((folder / "results").rglob("*.partial"))
    kept = [path for path in (folder / "results" / "checkpoints").rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in (*partial, *kept))


def uninterrupted(folder: Path) -> tuple[dict[str, str], float]:
    """The artefacts of a run that nobody kills, and its seconds."""
    prepare(folder)
    begin = time.monotonic()
    if start(folder).wait(PATIENCE) != 0:
        raise SystemExit(f"the uninterrupted run failed:\n{(folder / 'snakemake.log').read_text()[-3000:]}")
    return artefacts(folder), time.monotonic() - begin


def chaos(folder: Path, seed: int, wanted: dict[str, str], seconds: float) -> Outcome:
    """One seed: kill, start again, until the workflow is done; then compare."""
    prepare(folder)
    draw, outcome, begin = random.Random(seed), Outcome(seed), time.monotonic()
    kills = draw.randint(1, 3)
    while outcome.starts < MOST_STARTS:
        if outcome.starts:  # a killed Snakemake leaves its lock, and says so
            subprocess.run([*snakemake(folder), "--unlock"], cwd=folder, capture_output=True, check=False, env=environment())
        process = start(folder)
        outcome.starts += 1
        if len(outcome.killed) < kills:
            status = kill_one(process, draw, draw.uniform(0, seconds), outcome)
        else:
            status = process.wait(PATIENCE)
        if status == 0:
            break
    else:
        outcome.fault = f"not done after {MOST_STARTS} starts"
    wait_for_orphans(folder)
    outcome.seconds = time.monotonic() - begin
    found = artefacts(folder)
    outcome.differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    outcome.left = left_over(folder)
    return outcome


def kill_one(process: subprocess.Popen[bytes], draw: random.Random, delay: float, outcome: Outcome) -> int:
    """After `delay` seconds kill a process of the workflow that is drawn; what Snakemake ends with then."""
    try:
        return process.wait(delay)  # it was faster
    except subprocess.TimeoutExpired:
        pass
    members = sorted(family(process.pid).items())
    victim, name = draw.choice(members)
    try:
        os.kill(victim, signal.SIGKILL)
        outcome.killed.append(name)
    except ProcessLookupError:
        pass
    return process.wait(PATIENCE)


def wait_for_orphans(folder: Path) -> None:
    """Until no process works in the folder any more."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not [place for place in Path("/proc").glob("[0-9]*/cwd") if _points_to(place, folder)]:
            return
        time.sleep(0.2)


def _points_to(link: Path, folder: Path) -> bool:
    try:
        return Path(os.readlink(link)) == folder.resolve()
    except OSError:
        return False


def table(outcomes: list[Outcome], seconds: float) -> str:
    """The outcomes as Markdown."""
    good = sum(outcome.good for outcome in outcomes)
    killed = [name for outcome in outcomes for name in outcome.killed]
    victims = ", ".join(f"{name} {killed.count(name)}" for name in sorted(set(killed), key=lambda name: -killed.count(name)))
    longer = statistics.median(outcome.seconds for outcome in outcomes) / seconds
    lines = [
        f"{good} of {len(outcomes)} seeds ended with the bytes of the uninterrupted run; {len(killed)} processes were killed "
        f"({victims}); a killed run took {longer:.1f} times as long as an uninterrupted one (median).",
        "",
        "| seed | killed | starts | time / uninterrupted | artefacts |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        verdict = "equal" if outcome.good else "; ".join([outcome.fault, *outcome.differing, *outcome.left]).strip("; ")
        row = (
            outcome.seed,
            ", ".join(outcome.killed) or "nobody: it was faster",
            outcome.starts,
            f"{outcome.seconds / seconds:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, row))} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All seeds, one after the other; the table at the end, status 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        wanted, seconds = uninterrupted(Path(name) / "whole")
        outcomes = []
        for seed in range(options.first, options.first + options.seeds):
            outcomes.append(chaos(Path(name) / f"seed{seed}", seed, wanted, seconds))
            print(table(outcomes[-1:], seconds).splitlines()[-1], flush=True)
            if outcomes[-1].good:
                shutil.rmtree(Path(name) / f"seed{seed}")
    text = table(outcomes, seconds)
    print(text.splitlines()[0])
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    sys.exit(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    main()
