"""The processes that work in a folder, and what each of them is."""

import os
import time
from pathlib import Path
from typing import NamedTuple

CLIENT = "-ISu"  # in the command line of a program of tests/warm.py, which computes nothing itself


class Process(NamedTuple):
    """One that works in the folder."""

    identity: int
    kind: str  # Snakemake, shell, stage, data worker, other
    name: str  # the same, a stage with its command


def family(folder):
    """Every process whose working folder is `folder`, but for those that only stand for another."""
    found = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal():
            continue
        try:
            if Path(os.readlink(place / "cwd")) != folder:
                continue
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            comm = (place / "comm").read_text().strip()
        except OSError:  # it has ended meanwhile
            continue
        if state not in "ZX" and CLIENT not in words:
            found[int(place.name)] = (int(parent), kind_of(words, comm), comm)
    result = []
    for identity, (parent, kind, comm) in sorted(found.items()):
        own = kind
        if kind == "stage" and parent in found and found[parent][1] == "stage":
            own = "data worker"
        name = f"{own} {comm.removeprefix('dfkd ')}" if own in ("stage", "data worker") else own
        result.append(Process(identity, own, name))
    return result


def kind_of(words, comm):
    """What a process is by its command line and its name."""
    if comm.startswith("dfkd"):
        return "stage"
    if comm == "snakemake":
        return "Snakemake"
    return "shell" if Path(words[0]).name in ("bash", "sh") else "other"


def wait_until_idle(folder, patience):
    """Until no process works in the folder any more; whether that came."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not family(folder):
            return True
        time.sleep(0.05)
    return False
