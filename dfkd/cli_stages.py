"""The stages as commands: each reads its options and calls the function that is the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfkd.cli_options import (
    Banks,
    Changes,
    Checkpoints,
    Data,
    Device,
    OnDivergence,
    Output,
    Packed,
    RanksOption,
    SettingsText,
    TeacherFile,
    TestFile,
    given_settings,
    given_values,
    runtime_of,
    settings_epilog,
    workplace,
)
from dfkd.config import check_dataset, check_method, check_model, load_config, merge, parse
from dfkd.errors import UserError
from dfkd.methods import DEFAULT_METHOD, METHODS
from dfkd.settings import DatasetSettings, StageSettings

stages_app = typer.Typer()
teacher_app = typer.Typer(no_args_is_help=True, help="Train a teacher, or import a checkpoint as one.")
stages_app.add_typer(teacher_app, name="teacher")


@stages_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="data set's name")],
    output: Output,
    test_output: Annotated[Path, typer.Option(help="the test split alone: all that stages below the teacher may read")],
    settings: SettingsText = None,
    changes: Changes = None,
    downloads: Annotated[Path, typer.Option(help="where downloaded archives are kept")] = Path("data/downloads"),
    config: Annotated[Path, typer.Option(help="configuration folder, read when no settings are given")] = Path("config"),
) -> None:
    """Prepare a data set: real images as uint8 arrays in one HDF5 file. The only command that downloads data."""
    from dfkd.datasets.prepare import prepare as run

    values = given_values(settings, changes)
    if not settings:
        values = merge(check_dataset(name, load_config(config)).model_dump(), values)
    run(name, parse(DatasetSettings, values, f"data set {name}"), output, test_output, downloads)  # type: ignore[arg-type]


@teacher_app.command("train", epilog=settings_epilog("teacher"))
def teacher_train(
    data: Annotated[Path, typer.Option(help="prepared data set with a training split")],
    model: Annotated[str, typer.Option(help="architecture, e.g. wrn402")],
    output: Output,
    packed: Packed = None,
    checkpoints: Checkpoints = Path("results/checkpoints/teacher"),
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
    ranks: RanksOption = None,
    on_divergence: OnDivergence = "stop",
) -> None:
    """Train a teacher on the real images: weights, card, history and cost."""
    from dfkd.distillation.teacher import train_teacher
    from dfkd.divergence import attempt

    chosen = given_settings("teacher", settings, changes)
    architecture = check_model(model)
    with workplace(chosen, device, ranks, checkpoints, output) as (runtime, folder, (weights,)):
        attempt(lambda: train_teacher(data, architecture, chosen, weights, folder, runtime, packed), folder, on_divergence)


@teacher_app.command("import")
def teacher_import(
    checkpoint: Annotated[Path, typer.Argument(help="state dict of the usual CIFAR zoos (.pth)")],
    model: Annotated[str, typer.Option(help="architecture, e.g. wrn402")],
    dataset: Annotated[str, typer.Option(help="data set's name in config/datasets.yaml")],
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    test: Annotated[Path | None, typer.Option(help="prepared test split, to measure Acc@1")] = None,
    config: Annotated[Path, typer.Option(help="configuration folder")] = Path("config"),
    device: Device = "auto",
) -> None:
    """Make a teacher of a checkpoint trained elsewhere: bare state dict or {"state_dict": …}, with or without `module.`."""
    from dfkd.datasets.prepare import info_from_settings
    from dfkd.datasets.prepared import read_info
    from dfkd.distillation.teacher import import_teacher

    info = read_info(test) if test else info_from_settings(dataset, check_dataset(dataset, load_config(config)))
    target = output or Path(f"results/teachers/{dataset}_{model}/weights.safetensors")
    card = import_teacher(checkpoint, check_model(model), info, target, test, runtime_of(StageSettings(), device))
    measured = f", Acc@1 {card.metrics['acc1']:.2f} %" if "acc1" in card.metrics else ""
    typer.echo(f"{target}: {card.architecture}, {card.params:,} parameters{measured}")


@stages_app.command("init-bank", epilog=settings_epilog("init-bank"))
def init_bank(
    teacher: TeacherFile,
    output: Output,
    checkpoints: Checkpoints = Path("results/checkpoints/init-bank"),
    shard: Annotated[str, typer.Option(help="i/n: make the i-th of n shards")] = "1/1",
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
    ranks: RanksOption = None,
    on_divergence: OnDivergence = "stop",
) -> None:
    """Invert the teacher into an image bank."""
    from dfkd.divergence import attempt
    from dfkd.synthesis.init_bank import init_bank as run

    index, sign, count = shard.partition("/")
    if not (sign and index.isdigit() and count.isdigit()):
        raise UserError(f"--shard {shard}: expected i/n, e.g. 1/4.")
    chosen = given_settings("init-bank", settings, changes)
    part = int(index), int(count)
    with workplace(chosen, device, ranks, checkpoints, output, leave_out="*.lmdb*") as (runtime, folder, (bank,)):
        attempt(lambda: run(teacher, chosen, bank, folder, runtime, part), folder, on_divergence)


@stages_app.command(epilog=settings_epilog("augment"))
def augment(
    teacher: TeacherFile,
    bank: Annotated[Path, typer.Option(help="complete init bank")],
    output: Output,
    rejected: Annotated[Path, typer.Option(help="bank of what the fidelity filter dropped")],
    plot: Annotated[Path, typer.Option(help="PNG of the filter's histogram and accept rates")],
    checkpoints: Checkpoints = Path("results/checkpoints/augment"),
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
    ranks: RanksOption = None,
    on_divergence: OnDivergence = "stop",
) -> None:
    """Multiply a bank by diffusion variations and keep the faithful ones."""
    from dfkd.diffusion.augment import augment as run
    from dfkd.divergence import attempt

    chosen = given_settings("augment", settings, changes)
    outputs = output, rejected, plot
    with workplace(chosen, device, ranks, checkpoints, *outputs, leave_out="*.lmdb*") as (runtime, folder, (kept, lost, drawn)):
        attempt(lambda: run(teacher, bank, chosen, kept, lost, drawn, folder, runtime), folder, on_divergence)


@stages_app.command(
    "first-stage",
    epilog="The settings are the method's; those that count here are named in docs/methods/two-stage.md. "
    "`dfkd settings distill --method NAME` explains them.",
)
def first_stage(
    teacher: TeacherFile,
    student: Annotated[str, typer.Option(help="architecture, e.g. wrn161")],
    method: Annotated[str, typer.Option(help=", ".join(name for name, own in METHODS.items() if own.first_stage))],
    output: Output,
    bank: Banks = None,
    data: Data = None,
    packed: Packed = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    checkpoints: Checkpoints = Path("results/checkpoints/first_stage"),
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
    on_divergence: OnDivergence = "stop",
) -> None:
    """Train what a method in two stages starts its students from."""
    from dfkd.distillation.first_stage import train_first_stage as run
    from dfkd.divergence import attempt

    chosen = given_settings("distill", settings, changes, check_method(method))
    architecture, runtime, banks = check_model(student), runtime_of(chosen, device), bank or []
    attempt(
        lambda: run(teacher, banks, architecture, chosen, seed, output, checkpoints, runtime, method, data, packed),
        checkpoints,
        on_divergence,
    )


@stages_app.command(epilog=settings_epilog("distill"))
def distill(
    teacher: TeacherFile,
    student: Annotated[str, typer.Option(help="architecture, e.g. wrn161")],
    test: TestFile,
    output: Output,
    bank: Banks = None,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = DEFAULT_METHOD,
    data: Data = None,
    packed: Packed = None,
    first_stage: Annotated[
        Path | None, typer.Option(help="what `dfkd first-stage` has made, for methods in two stages")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="folder that keeps the teacher's answers for other runs; without it they end with this one"),
    ] = None,
    cache_mb: Annotated[
        int, typer.Option(min=0, help="memory that the teacher's answers to a fixed set of images may take; 0: none are kept")
    ] = 4000,
    checkpoints: Checkpoints = Path("results/checkpoints/distill"),
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
    ranks: RanksOption = None,
    on_divergence: OnDivergence = "stop",
) -> None:
    """Distil a student on the banks and on images made against it."""
    from dfkd.distillation.answers import CacheOptions
    from dfkd.distillation.distill import distill as run
    from dfkd.divergence import attempt

    chosen = given_settings("distill", settings, changes, check_method(method))
    architecture, banks, kept = check_model(student), bank or [], CacheOptions(cache, cache_mb)
    with workplace(chosen, device, ranks, checkpoints, output) as (runtime, folder, (weights,)):
        attempt(
            lambda: run(
                teacher,
                banks,
                architecture,
                test,
                chosen,
                seed,
                weights,
                folder,
                runtime,
                method,
                data,
                first_stage,
                kept,
                packed,
            ),
            folder,
            on_divergence,
        )
