"""Options, settings and output that several files of commands share. Imports no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dfkd.config import merge, parse, read_yaml, settings_of
from dfkd.errors import UserError
from dfkd.methods import DEFAULT_METHOD
from dfkd.settings import ON_DIVERGENCE, OnDivergencePolicy, Settings, StageSettings

if TYPE_CHECKING:
    from dfkd.runtime import Runtime

Bank = Annotated[Path, typer.Argument(help="the bank, a .lmdb file", metavar="BANK")]
BankTeacher = Annotated[
    Path | None,
    typer.Option("--teacher", help="teacher weights; by default those the bank was made with"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
OnDivergence = Annotated[
    OnDivergencePolicy,
    typer.Option(
        envvar=ON_DIVERGENCE,
        help="when a loss is lost: stop, or go on from the last good state at half the rate, up to five times (rollback)",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
RanksOption = Annotated[
    int | None,
    typer.Option("--ranks", min=1, help="processes that share the work, a GPU each; left away: as many as DFKD_GPUS asks for"),
]
SettingsText = Annotated[str | None, typer.Option("--settings", help="settings as JSON, or a YAML or JSON file")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value: change one setting (repeatable)")]
Checkpoints = Annotated[Path, typer.Option(help="folder that keeps the state between attempts")]
TeacherFile = Annotated[Path, typer.Option("--teacher", help="teacher weights (safetensors)")]
TestFile = Annotated[Path, typer.Option("--test", help="prepared test split (data/NAME.test.h5)")]
Banks = Annotated[list[Path] | None, typer.Option("--bank", help="image bank of this teacher (repeatable)")]
Data = Annotated[
    Path | None, typer.Option(help="images to distil on, for `real` and the `kd` methods: a prepared data set or a folder")
]
Packed = Annotated[Path | None, typer.Option(help="packed file with the training images, for data prepared with keep_packed")]
Output = Annotated[Path, typer.Option("--output", "-o")]


def print_json(content: Any) -> None:
    """Print JSON on stdout, indented; a number that is not finite is an error, as JSON has none."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def settings_epilog(stage: str) -> str:
    """The settings of a stage with their defaults, for `--help`."""
    of = f" of {DEFAULT_METHOD}" if stage == "distill" else ""
    lines = [f"Settings{of} (--set key=value), defaults in brackets; `dfkd settings {stage}` explains them:"]
    for name, field in settings_of(stage).model_fields.items():
        default = field.get_default(call_default_factory=True)
        lines.append(f"{name} [{default.model_dump() if isinstance(default, Settings) else default}]".replace("[", r"\["))
    return "\n\n".join(lines)


def given_values(text: str | None, changes: list[str] | None) -> dict[str, Any]:
    """The settings given on the command line, unvalidated."""
    values: Any = {}
    if text:
        try:
            values = json.loads(text) if text.lstrip().startswith("{") else read_yaml(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--settings: not valid JSON ({error}).") from None
    for change in changes or []:
        key, sign, value = change.partition("=")
        if not sign:
            raise UserError(f"--set {change}: expected key=value.")
        nested: Any = _literal(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, nested)
    return values


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def given_settings(stage: str, text: str | None, changes: list[str] | None, method: str = DEFAULT_METHOD) -> Any:
    """The settings of a stage, from text and changes; a fault is a `UserError`."""
    return parse(settings_of(stage, method), given_values(text, changes), f"{stage} settings")


class Workplace(NamedTuple):
    """Where one of the processes of a stage computes, keeps its state and writes."""

    runtime: Runtime
    checkpoints: Path
    outputs: list[Path]


@contextlib.contextmanager
def workplace(
    settings: StageSettings, device: str, ranks: int | None, checkpoints: Path, *outputs: Path, leave_out: str = ""
) -> Iterator[Workplace]:
    """The place of this process, after the command has become as many processes as it is to be.

    Args:
        leave_out: pattern of files in the checkpoint folder that the first process alone needs.
    """
    from dfkd.launch import launch

    launch(ranks, device)
    from dfkd.parallel import own_folders
    from dfkd.runtime import Runtime

    runtime = Runtime.create_shared(settings.precision, device, settings.compile)
    with own_folders(runtime.ranks, checkpoints, outputs, leave_out) as (folder, places):
        yield Workplace(runtime, folder, places)
    runtime.ranks.leave()


def runtime_of(settings: StageSettings, device: str) -> Runtime:
    """Where a stage computes, and how."""
    from dfkd.runtime import Runtime

    return Runtime.create(settings.precision, device, settings.compile)
