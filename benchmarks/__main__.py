"""`python -m benchmarks`: measure speed and memory on this machine, print tables, write Markdown and JSON."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import (
    bank,
    cache,
    memory,
    methods,
    objectives,
    packed,
    peak,
    planning,
    scaling,
    stream,
    student,
    synthesis,
    viewer,
)
from benchmarks.settings import QUICK, Options
from benchmarks.table import Section, as_json, markdown, print_sections
from dfkd.errors import UserError, nearest
from dfkd.files import atomic_path, write_json
from dfkd.progress import setup_logging
from dfkd.provenance import revision, versions
from dfkd.runtime import Runtime, can_compile, multiplies_bf16

PARTS = (
    "synthesis", "student", "cache", "objectives", "methods", "bank", "memory", "stream", "packed", "planning", "viewer",
)  # fmt: skip
BY_NAME = ("scaling",)  # only where it is asked for: minutes, and gigabytes on the disk
LATEST = Path(__file__).resolve().parent / "latest.md"


def chosen_parts(text: str) -> list[str]:
    """Names separated by commas. Raises a `UserError` at an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*PARTS, *BY_NAME):
            raise UserError(f"--only {name}: no such part of the benchmark; {nearest(name, (*PARTS, *BY_NAME))}.")
    return names


def measure(options: Options, parts: list[str]) -> list[Section]:
    """The peak, which the others are held against, and these parts."""
    first, peaks = peak.measure(options)
    sections = [first]
    with tempfile.TemporaryDirectory(prefix="dfkd-benchmark-", ignore_cleanup_errors=True) as folder:
        if "synthesis" in parts:
            sections.append(synthesis.measure(options, peaks))
        if "student" in parts:
            sections.append(student.measure(options, peaks))
        if "cache" in parts:
            sections.append(cache.measure(options))
        if "objectives" in parts:
            sections.append(objectives.measure(options))
        if "methods" in parts:
            sections.append(methods.measure(options))
        if "bank" in parts:
            sections.append(bank.measure(options, Path(folder)))
        if "memory" in parts:
            sections.append(memory.measure(options, Path(folder)))
        if "stream" in parts:
            sections.append(stream.measure(options, Path(folder)))
        if "packed" in parts:
            sections.append(packed.measure(options, Path(folder)))
        if "planning" in parts:
            sections.append(planning.measure(options, Path(folder)))
        if "viewer" in parts:
            sections.append(viewer.measure(options, Path(folder)))
        if "scaling" in parts:
            sections += scaling.measure(options, Path(folder))
    return sections


def about(options: Options, arguments: list[str]) -> dict[str, Any]:
    """Command, machine, versions, date, settings."""
    runtime = Runtime.create("fast", options.device)
    machine = runtime.describe() | {
        "cores": os.cpu_count() or 0,
        "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "bf16 in hardware": multiplies_bf16(runtime.device),
        "compiler": can_compile(runtime.device),
        "system": platform.system(),
    }
    return {
        "command": " ".join(["python -m benchmarks", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine,
        "versions": versions(),
        "revision": revision(),
        "settings": asdict(options),
    }


def write(output: Path, described: dict[str, Any], sections: list[Section]) -> None:
    """`output` as Markdown, and JSON with every single measurement beside it."""
    with atomic_path(output) as temporary:
        temporary.write_text(markdown(described, sections), encoding="utf-8")
    write_json(output.with_suffix(".json"), as_json(described, sections))


def run(
    quick: Annotated[bool, typer.Option("--quick", help="small batches and banks, nothing compiled: a minute or two")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Markdown; JSON beside it. A full run: benchmarks/latest.md")
    ] = None,
    only: Annotated[str, typer.Option(help="parts, separated by commas")] = ",".join(PARTS),
    no_compile: Annotated[bool, typer.Option("--no-compile", help="leave out torch.compile, which takes minutes")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    teacher: Annotated[str | None, typer.Option(help="architecture")] = None,
    student: Annotated[str | None, typer.Option(help="architecture")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="images of a synthesis step")] = None,
    student_batch: Annotated[int | None, typer.Option(min=2, help="images of a student step")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="timed steps a turn; default 2, on a GPU 30")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="turns of each variant")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="of the original's DataLoader; default 0, on a GPU 4")] = None,
) -> None:
    """Measure speed and memory on this machine."""
    parts = chosen_parts(only)
    cuda = Runtime.create("fast", device).device.type == "cuda"
    options = replace(Options(device=device), **(QUICK if quick else {}))  # type: ignore[arg-type]
    if cuda:
        options = replace(options, steps=30, workers=4)
    given = {
        "teacher": teacher, "student": student, "batch": batch, "student_batch": student_batch, "steps": steps,
        "rounds": rounds, "workers": workers, "compile": False if no_compile else None,
    }  # fmt: skip
    options = replace(options, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    options = replace(options, store=max(options.store, options.student_batch))
    whole = not quick and set(PARTS) <= set(parts)
    target = output or (LATEST if whole else None)
    sections = measure(options, parts)
    described = about(options, sys.argv[1:])
    print_sections(sections, Console(width=None if Console().is_terminal else 140))
    if target is not None:
        write(target, described, sections)
        print(f"written: {target} and {target.with_suffix('.json').name}", file=sys.stderr)


def main() -> None:
    setup_logging()
    # a compiler cache of an earlier run would hide what compiling takes
    cache = tempfile.TemporaryDirectory(prefix="dfkd-compiler-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    torch.manual_seed(0)
    app = typer.Typer(add_completion=False)
    app.command()(run)
    try:
        with cache:
            app()
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
