"""The commands that make a bank and its page, as somebody in the working folder would type them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from dfkd.bank.format import BankMeta
from dfkd.methods import METHODS

BREAK = " \\\n    "


def shown_path(path: str | Path) -> str:
    """A path as a page may show it: relative to the working folder; the bare name of a file elsewhere."""
    given = Path(path)
    if given.is_absolute():
        given = given.relative_to(Path.cwd()) if given.is_relative_to(Path.cwd()) else Path(given.name)
    return given.as_posix()


def command_line(words: Sequence[str]) -> str:
    """Words as a shell takes them, each option on a line of its own if they are many."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    text = " ".join(map(" ".join, lines))
    return text if len(text) <= 100 else BREAK.join(map(" ".join, lines))


def making_command(bank: Path, meta: BankMeta, teacher: Path | None, parents: Path | None) -> str | None:
    """The command of the stage that made a bank, with all its settings; None for a stage that is not known here.

    Files that the bank's file says nothing of (the teacher where it is not found, the test split, other banks) are named as
    the workflow names them.
    """
    dataset = meta.dataset.name
    found = meta.lineage[0].get("architecture", "TEACHER") if meta.lineage else "TEACHER"
    weights = shown_path(teacher) if teacher else f"results/teachers/{dataset}_{found}/weights.safetensors"
    settings = ["--settings", json.dumps(meta.settings, sort_keys=True, ensure_ascii=False)]
    if meta.stage == "init-bank":
        return command_line(["dfkd", "init-bank", "--teacher", weights, *settings, "-o", shown_path(bank)])
    folder = f"results/banks/{dataset}_{found}"
    if meta.stage == "augment":
        source = shown_path(parents) if parents else f"{folder}/init.lmdb"
        names = ("variations.lmdb", "rejected.lmdb", "filter.png")
        kept, dropped, plot = (shown_path(bank.with_name(name)) for name in names)
        words = ["dfkd", "augment", "--teacher", weights, "--bank", source, *settings]
        return command_line([*words, "-o", kept, "--rejected", dropped, "--plot", plot])
    if meta.stage == "distill":
        banks = [word for step in meta.lineage if "bank" in step for word in ("--bank", f"{folder}/{step['bank']}.lmdb")]
        method = str(meta.extra.get("method", ""))
        words = [
            "dfkd",
            "distill",
            "--teacher",
            weights,
            *banks,
            "--method",
            method,
            "--student",
            str(meta.extra.get("student")),
        ]
        words += [*_outside(method, meta), "--seed", str(meta.seed), "--test", f"data/{dataset}.test.h5", *settings]
        return command_line([*words, "-o", shown_path(bank.with_name("student.safetensors"))])
    return None


def _outside(method: str, meta: BankMeta) -> list[str]:
    """`--data` for a method that distils on images from outside."""
    kind, _, value = str(meta.settings.get("transfer_set", "")).partition(":")
    if method in METHODS and METHODS[method].real:
        kind = "train"
    files = {"train": f"data/{meta.dataset.name}.h5", "dataset": f"data/{value}.h5", "folder": value}
    return ["--data", files[kind]] if kind in files else []


def workflow_command(bank: Path) -> str | None:
    """The target of the workflow that a bank is, if it lies where the workflow keeps banks."""
    path = shown_path(bank)
    return command_line(["snakemake", "--cores", "all", path]) if path.startswith(("results/banks/", "results/runs/")) else None
