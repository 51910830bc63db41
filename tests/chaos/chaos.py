"""The digits workflow, killed at random moments and started again: is every artefact what it would have been?

    python tests/chaos/chaos.py --seeds 100 --output docs/chaos.md

A seed decides how often a process is killed with SIGKILL, when, and of which kind: Snakemake, the shell of a job, the stage
that computes, a worker that decodes images for it. After each kill the same command is typed again at once, as a user would,
while a stage that lost its Snakemake may still be running. The artefacts are compared with those of an uninterrupted run, byte
by byte, but for what holds times by design.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

from processes import family, wait_until_idle
from workplace import PATIENCE, STUDENT, TARGET, Workplace, pack_digits, until_student

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MOST_STARTS = 12
WHOLE = 4  # every so many seeds go to the end of the workflow; the others to the student
KINDS = {"stage": 5, "Snakemake": 3, "shell": 2, "data worker": 2}  # weights of the draw


WORDS = """Written by `make chaos`: the digits workflow (DDA, two shards, every stage at its smallest budget, CPU, `reference`
precision), killed with SIGKILL at random moments and started again at once; every artefact compared with those of an
uninterrupted run, byte by byte. What is compared and what is left out: [reliability.md](reliability.md#how-it-is-tested).
Every fourth seed runs to the result with all its pages, the others to the student.

"""


class Kill(NamedTuple):
    """One kill of a plan."""

    kind: str
    moment: float  # 0 to 1, of the time that an uninterrupted run takes; a data worker's: of a second of its life


@dataclass
class Outcome:
    """What became of one seed."""

    seed: int
    whole: bool = True  # to the result, or to the student
    killed: list[str] = field(default_factory=list)  # the victims, in their order
    starts: int = 0
    seconds: float = 0.0
    differing: list[str] = field(default_factory=list)  # artefacts that are not those of the uninterrupted run
    left: list[str] = field(default_factory=list)  # partial files and checkpoints that nothing will remove
    fault: str = ""

    @property
    def good(self):
        """Whether the run ended as an uninterrupted one."""
        return not (self.differing or self.left or self.fault)


def plan(seed):
    """The kills of a seed, one to three."""
    draw = random.Random(f"digits {seed}")
    kinds = draw.choices(list(KINDS), list(KINDS.values()), k=draw.randint(1, 3))
    # workers are there at the beginning alone
    return [Kill(kind, draw.random()) for kind in sorted(kinds, key="data worker".__ne__)]


class Chaos:
    """Runs seeds beside an uninterrupted run, whose artefacts and seconds are the measure."""

    def __init__(self, folder, program, target=TARGET):
        self.folder, self.target = folder, target
        (folder / "bin").mkdir(parents=True)
        for name in ("dfkd", "snakemake"):
            (folder / "bin" / name).write_text(program)
            (folder / "bin" / name).chmod(0o755)
        self.packed = pack_digits(folder)
        whole = self.place("whole")
        begin = time.monotonic()
        if whole.start(target).wait(PATIENCE) != 0:
            raise SystemExit(f"the uninterrupted run failed:\n{whole.log()}")
        self.seconds, self.wanted = time.monotonic() - begin, whole.artefacts()

    def place(self, name):
        """A fresh folder to work in."""
        return Workplace(self.folder / name, self.folder / "bin", self.packed)

    def run(self, seed):
        """One seed: kill, start again, until the workflow is done; then compare."""
        to_the_end = self.target == TARGET and seed % WHOLE == 0
        target, wanted = (TARGET, self.wanted) if to_the_end else (STUDENT, until_student(self.wanted))
        place, outcome, begin = self.place(f"seed{seed}"), Outcome(seed, to_the_end), time.monotonic()
        kills = plan(seed)
        while outcome.starts < MOST_STARTS:
            if outcome.starts and outcome.killed[-1:] == ["Snakemake"]:  # it leaves its lock, and says so
                place.unlock()
            process = place.start(target)
            outcome.starts += 1
            if kills and kill_one(process, place.folder, kills[0], self.seconds * (1 if to_the_end else 0.5), outcome):
                del kills[0]
            if process.wait(PATIENCE) == 0:
                break
        else:
            outcome.fault = f"not done after {MOST_STARTS} starts"
        if not wait_until_idle(place.folder, PATIENCE):
            outcome.fault = "a process went on"
        outcome.seconds = time.monotonic() - begin
        found = place.artefacts()
        outcome.differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        outcome.left = place.left_over()
        if outcome.good:
            place.remove()
        return outcome


def kill_one(process, folder, kill, seconds, outcome):
    """Kill a process of the planned kind at the planned moment, or the first of that kind behind it; whether there was one."""
    if kill.kind == "data worker":
        _first(process, folder, kill.kind)
        wait = kill.moment
    else:
        wait = seconds * kill.moment
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    victim = _first(process, folder, kill.kind)
    if victim is None:  # the workflow was faster
        return False
    try:
        os.kill(victim.identity, signal.SIGKILL)
    except ProcessLookupError:
        return False
    outcome.killed.append(victim.name)
    return True


def _first(process, folder, kind):
    """A process of a kind as soon as there is one; None if the workflow ends before."""
    while process.poll() is None:
        for one in family(folder):
            if one.kind == kind:
                return one
        time.sleep(0.01)
    return None


def table(outcomes):
    """The outcomes as Markdown."""
    good = sum(outcome.good for outcome in outcomes)
    killed = [name for outcome in outcomes for name in outcome.killed]
    victims = ", ".join(f"{name} {killed.count(name)}" for name in sorted(set(killed), key=lambda name: -killed.count(name)))
    lines = [
        f"{good} of {len(outcomes)} seeds ended with the bytes of the uninterrupted run; {len(killed)} processes were killed "
        f"({victims}).",
        "",
        "| seed | to the | killed | starts | artefacts |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        verdict = "equal" if outcome.good else "; ".join([outcome.fault, *outcome.differing, *outcome.left]).strip("; ")
        who = ", ".join(outcome.killed) or "nobody: it was faster"
        end = "result" if outcome.whole else "student"
        lines.append(f"| {outcome.seed} | {end} | {who} | {outcome.starts} | {verdict} |")
    return "\n".join(lines) + "\n"


def main():
    """All seeds, one after the other; the table at the end, status 1 if any differs."""
    from warm import Warm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those that differ stay there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        server = Warm(Path(name), "snakemake.cli")
        try:
            chaos = Chaos(folder.resolve(), server.program)
            print(f"uninterrupted: {chaos.seconds:.1f} s, {len(chaos.wanted)} artefacts", flush=True)
            outcomes = []
            for seed in range(options.first, options.first + options.seeds):
                outcomes.append(chaos.run(seed))
                print(table(outcomes[-1:]).splitlines()[-1], flush=True)
        finally:
            server.close()
    text = table(outcomes)
    print(text.splitlines()[0])
    if options.output:
        when = f"{date.today()}, {os.cpu_count()} cores, {chaos.seconds:.1f} s for the uninterrupted run."
        options.output.write_text(f"# Killed and started again\n\n{WORDS}{when}\n\n{text}", encoding="utf-8")
    sys.exit(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    main()
