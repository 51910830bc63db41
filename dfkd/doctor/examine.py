"""All checks in turn, and how they are shown."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfkd.doctor import inputs, machine, software
from dfkd.doctor.finding import Finding, Mark
from dfkd.provenance import revision

MARKS: dict[Mark, tuple[str, str]] = {"ok": ("✓", "green"), "better": ("○", "yellow"), "missing": ("✗", "red")}
WIDTH = 140  # where there is no terminal


def examine(
    config: Path = Path("config"), offline: bool = False, note: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Run every check, in the order in which it is read. `note` is told what is going on.

    The network is touched by `inputs.check_hub` alone, and only if not `offline`.
    """
    note("importing torch")
    torch = _import_torch()
    compiling = machine.start_compiling(torch) if torch is not None else None  # takes longest: beside the others
    try:
        note("looking at libraries and plugins")
        software_findings = [
            software.check_python(),
            software.check_package(revision()),
            software.check_torch(torch),
            *software.check_libraries(software.requirements()),
            *software.check_snakemake(),
            *software.check_plugins(config),
        ]
        note(f"asking {inputs.hub_address()}" if not offline else "looking at data sets and weights")
        input_findings = [inputs.check_hub(offline), *_inputs(config, torch)]
        here = [
            machine.check_memory(),
            machine.check_disk("disk", Path.cwd()),
            machine.check_disk("temporary files", Path(tempfile.gettempdir())),
        ]
        if torch is None:
            return [*software_findings, *here, *input_findings]
        devices = machine.check_devices(torch)
        note("compiling a tiny function")
        devices.append(compiling.finding() if isinstance(compiling, machine.CompileCheck) else compiling)  # type: ignore[arg-type]
        cores = machine.check_cores(torch.get_num_threads())
        return [*software_findings, *devices, cores, *here, *machine.check_energy(_uuids(torch)), *input_findings]
    finally:
        if isinstance(compiling, machine.CompileCheck):
            compiling.stop()


def _import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except Exception:  # absent, or a library that it links to is: OSError, RuntimeError
        return None


def _uuids(torch: Any) -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]


def _inputs(folder: Path, torch: Any) -> list[Finding]:
    config, finding = inputs.read_config(folder)
    if config is None:
        return [finding]
    weights = [inputs.check_weights(*key, purpose) for key, purpose in inputs.wanted_weights(config).items()]
    sets = [inputs.check_dataset(name, own) for name, own in config.datasets.items()] if torch is not None else []
    return [finding, *weights, *sets]


def lacking(findings: Sequence[Finding]) -> list[Finding]:
    """What is missing that every run needs."""
    return [finding for finding in findings if finding.needed and finding.mark == "missing"]


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """A line a finding, with what to do below it, and in the end whether runs can start."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for place, finding in enumerate(findings):
        if place == 0 or findings[place - 1].section != finding.section:
            table.add_row("", Text(finding.section, style="bold"), "")
        sign, colour = MARKS[finding.mark]
        says = Text(finding.says)
        if finding.remedy:
            says.append(f"\n→ {finding.remedy}", style="dim")
        table.add_row(Text(sign, style=colour), finding.name, says)
    console.print(table)
    console.print()
    better = sum(finding.mark == "better" for finding in findings)
    absent = lacking(findings)
    if absent:
        console.print(f"Not ready: {', '.join(finding.name for finding in absent)} missing.", style="bold red", highlight=False)
    else:
        others = sum(finding.mark == "missing" for finding in findings)
        rest = f"; {others} missing for some runs" if others else ""
        console.print(f"Ready for runs{rest}; {better} could be better.", style="bold", highlight=False)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for programs."""
    content = {"ready": not lacking(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)
