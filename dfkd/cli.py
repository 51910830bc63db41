"""The command line: every stage and every bank tool as a subcommand. Parses and calls, nothing more.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfkd.cli_data import data_app
from dfkd.cli_deploy import deploy_app
from dfkd.cli_options import (
    Changes,
    Device,
    Output,
    SettingsText,
    TestFile,
    given_settings,
    runtime_of,
    settings_epilog,
)
from dfkd.cli_stages import stages_app
from dfkd.config import (
    STAGES,
    load_config,
    settings_of,
)
from dfkd.errors import UserError, nearest
from dfkd.launch import leave_word
from dfkd.methods import DEFAULT_METHOD
from dfkd.plugins import configured, load_plugins
from dfkd.settings import Settings

if TYPE_CHECKING:
    pass


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress image classifiers without their training data.",
)
plot_app = typer.Typer(no_args_is_help=True, help="Draw what a run has written.")
app.add_typer(stages_app)
app.add_typer(plot_app, name="plot")
app.add_typer(data_app, name="data")
app.add_typer(deploy_app)


@app.command(epilog=settings_epilog("evaluate"))
def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="weights with their card, or state dicts trained elsewhere (.pth, .pt, .safetensors)", metavar="CHECKPOINT..."
        ),
    ],
    teacher: Annotated[Path | None, typer.Option(help="what they are compared with; without it each is measured alone")] = None,
    dataset: Annotated[str | None, typer.Option(help="measure on data/NAME.test.h5; left away: as the first card says")] = None,
    test: Annotated[Path | None, typer.Option(help="measure on this prepared test split instead")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="ARCH of all checkpoints without a card, or CHECKPOINT:ARCH of one (repeatable)"),
    ] = None,
    best: Annotated[Path | None, typer.Option(help="weights of the best epoch of the one checkpoint, reported beside")] = None,
    bank: Annotated[list[Path] | None, typer.Option(help="bank that the one checkpoint was distilled on (repeatable)")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder for metrics, predictions and pictures, one each if several"),
    ] = None,
    plots: Annotated[bool, typer.Option(help="draw the pictures into the folder")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    settings: SettingsText = None,
    changes: Changes = None,
    config: Annotated[Path, typer.Option(help="configuration folder, read when the test split is absent")] = Path("config"),
    device: Device = "auto",
) -> None:
    """Measure checkpoints on a test split, alone or against their teacher: a table; with -o metrics, predictions, pictures."""
    from dfkd.evaluation.checkpoint_table import print_evaluation
    from dfkd.evaluation.checkpoints import Architectures, find_test
    from dfkd.evaluation.evaluate import evaluate as run

    chosen = given_settings("evaluate", settings, changes)
    paths = [*([teacher] if teacher else []), *checkpoints, *([best] if best else [])]
    found = run(
        checkpoints,
        find_test(test, dataset, paths, config),
        chosen,
        runtime_of(chosen, device),
        teacher=teacher,
        best=best,
        architectures=Architectures.parse(model or [], paths),
        output=output,
        banks=bank or [],
        pictures=plots,
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        print_evaluation(found)


@app.command()
def result(
    dataset: Annotated[str, typer.Option()],
    student: Annotated[str, typer.Option(help="architecture")],
    metrics: Annotated[list[Path], typer.Option(help="metrics.json of one seed (repeatable)")],
    config_hash: Annotated[str, typer.Option(help="SHA-256 of the settings of all stages")],
    output: Output,
    teacher: Annotated[str | None, typer.Option(help="architecture; left away for method scratch")] = None,
    method: Annotated[str, typer.Option()] = DEFAULT_METHOD,
    cost: Annotated[list[str] | None, typer.Option(help="STAGE=FILE (repeatable)")] = None,
    artefact: Annotated[list[str] | None, typer.Option(help="NAME=FILE whose SHA-256 is recorded (repeatable)")] = None,
    variations: Annotated[Path | None, typer.Option(help="the variations bank that was distilled on")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page of the tables, written as well")] = None,
) -> None:
    """Gather metrics of all seeds, costs and provenance into one result file."""
    from dfkd.evaluation.result import collect

    costs: dict[str, list[Path]] = {}
    for stage, path in _pairs("--cost", cost):
        costs.setdefault(stage, []).append(path)
    artefacts = dict(_pairs("--artefact", artefact))
    collect(dataset, teacher, student, method, metrics, costs, artefacts, variations, config_hash, output)
    if page is not None:
        from dfkd.evaluation.show import write_result_page

        write_result_page(output, page)


def _pairs(option: str, texts: list[str] | None) -> list[tuple[str, Path]]:
    """NAME=FILE texts, split."""
    for text in texts or []:
        if "=" not in text:
            raise UserError(f"{option} {text}: expected NAME=FILE.")
    return [(name, Path(path)) for name, _, path in (text.partition("=") for text in texts or [])]


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="result file")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="an HTML page of the tables, in place of printing")
    ] = None,
) -> None:
    """Print a result as tables, with published figures beside, and say where its pictures are."""
    from dfkd.evaluation.show import show as run
    from dfkd.evaluation.show import write_result_page

    run(path) if output is None else write_result_page(path, output)


@app.command()
def results(
    places: Annotated[
        list[Path] | None, typer.Argument(help="folders or result files; `results` when none is named", metavar="FOLDER...")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="table, csv, markdown, latex or json; by default what FILE's name says")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="write to this file")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="of this data set alone (repeatable)")] = None,
    method: Annotated[list[str] | None, typer.Option(help="of this method alone (repeatable)")] = None,
    pair: Annotated[list[str] | None, typer.Option(help="of this pair alone, e.g. wrn402_wrn161 (repeatable)")] = None,
) -> None:
    """Tabulate all results below a folder: one table for each data set and pair, published figures and costs beside."""
    from dfkd.evaluation.gather import find_results, group_results, select
    from dfkd.evaluation.results_table import fault_lines, format_of, write_groups

    chosen = format_of(form, output)
    found, faults = find_results(places or [Path("results")])
    write_groups(group_results(select(found, dataset or (), method or (), pair or ())), faults, chosen, output)
    for line in fault_lines(faults):
        typer.echo(line, err=True)


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="result files of one data set and pair, one a method", metavar="RESULT...")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the HTML file; .csv and .png are written beside it")],
    runs: Annotated[Path, typer.Option(help="folder of the runs: histories, banks, predictions")] = Path("results/runs"),
) -> None:
    """Compare methods: table, learning curves, images, and which differences are more than noise."""
    from dfkd.evaluation.compare_page import write_comparison

    for row in write_comparison(results, runs, output):
        typer.echo(f"{row.method:20} Acc@1 {row.acc1:6.2f} %  Agree@1 {row.agree1:6.2f} %  {row.seconds:,.0f} s")


@app.command()
def campaign(
    campaign: Annotated[str, typer.Argument(help="name in the configuration, YAML file, or its content as JSON")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the HTML file; .csv and .png are written beside it")],
    results: Annotated[Path, typer.Option(help="folder of the results")] = Path("results"),
    config: Annotated[Path, typer.Option(help="configuration folder, read when no JSON is given")] = Path("config"),
) -> None:
    """Gather a campaign: methods and pairs beside each other, what it took, what is still missing."""
    from dfkd.campaigns import read_campaign
    from dfkd.evaluation.campaign_page import write_campaign

    name, content = read_campaign(campaign, output.stem, config)
    gathered = write_campaign(name, content, results, output)
    for place in gathered.missing:
        typer.echo(f"missing: {results / place.file}" + (f" ({place.reason})" if place.reason else ""), err=True)
    typer.echo(f"{output}: {gathered.done} of {gathered.done + len(gathered.missing)} results")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="of a run, a teacher or a teacher's banks, made or in the making")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="folder to write to; FOLDER itself by default")] = None,
) -> None:
    """Report a run, a teacher or its banks as pages: report.html, summary.html; curves as PNG. Works while they are made."""
    from dfkd.evaluation.run_report import write_report

    for path in write_report(folder, output):
        typer.echo(path)


@plot_app.command("curves")
def plot_curves(history: Annotated[Path, typer.Argument(help="history.csv")], output: Output) -> None:
    """Draw learning curves as PNG."""
    from dfkd.evaluation.plots import plot_history

    plot_history(history, output)


@plot_app.command("confusion")
def plot_confusion(metrics: Annotated[Path, typer.Argument(help="metrics.json of a run")], output: Output) -> None:
    """Draw the confusion matrices of teacher and student as PNG."""
    from dfkd.evaluation.formats import read_metrics
    from dfkd.evaluation.plots import plot_confusion as run

    run(read_metrics(metrics), output)


@plot_app.command("evaluation")
def plot_evaluation(
    folder: Annotated[Path, typer.Argument(help="an evaluated run: student, metrics.json, predictions.h5", metavar="FOLDER")],
    test: TestFile,
    teacher: Annotated[Path | None, typer.Option(help="its teacher; left away for a student from scratch")] = None,
    bank: Annotated[list[Path] | None, typer.Option(help="bank that the student was distilled on (repeatable)")] = None,
    settings: SettingsText = None,
    changes: Changes = None,
    device: Device = "auto",
) -> None:
    """Draw all pictures of an evaluation into a run's folder again, from the logits that lie in it."""
    from dfkd.evaluation.formats import read_metrics
    from dfkd.evaluation.pictures import draw_pictures, open_run

    chosen = given_settings("evaluate", settings, changes)
    evaluated = open_run(folder, test, runtime_of(chosen, device), teacher, bank or [])
    draw_pictures(evaluated, read_metrics(folder / "metrics.json"), folder, chosen)


@plot_app.command("run")
def plot_run(
    folder: Annotated[Path, typer.Argument(help="a run: history.csv, bank.lmdb", metavar="FOLDER")],
) -> None:
    """Draw the training of a run into its folder: bank.png where it has a bank, curves.png and the report."""
    from dfkd.evaluation.run_report import write_report

    if (folder / "bank.lmdb").exists():  # a student from scratch has none
        from dfkd.bank.grid import contact_sheet

        contact_sheet(folder / "bank.lmdb", folder / "bank.png")
    write_report(folder)


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="leave out the one check that touches the network")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    config: Annotated[Path, typer.Option(help="configuration folder")] = Path("config"),
) -> None:
    """Say what this machine can do and what to do about what it cannot. Asks huggingface.co whether it is there.

    Exit status 1 if something is missing that every run needs.
    """
    from rich.console import Console

    from dfkd.doctor.examine import WIDTH, examine, lacking, print_findings
    from dfkd.doctor.examine import as_json as to_json

    with Console(stderr=True).status("") as status:
        findings = examine(config, offline, status.update)
    if as_json:
        typer.echo(to_json(findings))
    else:
        print_findings(findings, Console(width=None if Console().is_terminal else WIDTH))
    if lacking(findings):
        raise typer.Exit(1)


@app.command("settings")
def show_settings(
    stage: Annotated[str, typer.Argument(help=", ".join((*STAGES, "distill")))],
    target: Annotated[str | None, typer.Argument(help="dataset_teacher[_student]: the resolved settings as JSON")] = None,
    method: Annotated[str, typer.Option()] = DEFAULT_METHOD,
    config: Annotated[Path, typer.Option(help="configuration folder")] = Path("config"),
) -> None:
    """Explain a stage's settings, or print those that the configuration gives a target (to be passed to --settings)."""
    if stage not in (*STAGES, "distill"):
        raise UserError(f"unknown stage '{stage}'; {nearest(stage, (*STAGES, 'distill'))}.")
    if target:
        dataset, teacher, student = (*target.split("_"), "", "")[:3]
        typer.echo(load_config(config).stage(stage, dataset, teacher, student, method).model_dump_json())
        return
    for name, field in settings_of(stage, method).model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = default.model_dump() if isinstance(default, Settings) else default
        typer.echo(f"{name} = {shown}" + (f"\n    {field.description}" if field.description else ""))


def main() -> None:
    """Entry point: one sentence and status 2 for a user's mistake; 128 + signal after an interruption."""
    from dfkd.cli_bank import bank_app
    from dfkd.progress import Stopped, leave_on_signals, setup_logging

    app.add_typer(bank_app, name="bank")
    setup_logging()
    if sys.argv[1:3] != ["bank", "browse"]:  # a server, which ends on them as it is meant to
        leave_on_signals()
    try:
        if sys.argv[1:2] != ["doctor"]:  # which says what is wrong with a broken plugin
            load_plugins(configured())
        app()
    except UserError as error:
        leave_word(error, 2)
    except Stopped as stopped:
        leave_word(stopped, stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
