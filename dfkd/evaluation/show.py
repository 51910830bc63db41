"""A result file as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfkd.evaluation.formats import Amounts, ResultFile, Statistic, read_result
from dfkd.evaluation.published import PublishedFigure
from dfkd.methods import METHODS
from dfkd.pages import write_page

# key of the result, name, decimals, unit
ROWS = (
    ("acc1", "Acc@1", 2, " %"),
    ("best_acc1", "Acc@1, best epoch", 2, " %"),
    ("acc5", "Acc@5", 2, " %"),
    ("agree1", "Agree@1", 2, " %"),
    ("lp", "L_p = 1 − JSD^¼", 4, ""),
    ("one_minus_js_distance", "1 − √JSD", 4, ""),
    ("nll", "NLL", 4, ""),
    ("ece", "ECE", 4, ""),
)
# metric of published.csv -> key of the result and the factor to its unit
PUBLISHED_METRICS = {"acc1": ("acc1", 1.0), "acc1_fraction": ("acc1", 100.0), "agree1": ("agree1", 1.0), "L_p": ("lp", 1.0)}
WIDTH = 100


def show(path: str | Path, console: Console | None = None) -> None:
    """Print a result: our metrics, the published figures beside them, what each stage took, where the pictures are."""
    result = read_result(path)
    console = console or Console(width=None if Console().is_terminal else WIDTH)
    console.print()
    console.print(f"[bold]{result.dataset}[/]: {_networks(result)}", highlight=False)
    variations = ""
    if result.augmentation is not None:
        rate = result.augmentation.accept_rate
        kept = "" if rate is None else f", {100 * rate:.1f} % of them kept by the fidelity filter"
        variations = f"; variations: {result.augmentation.backend}{kept}"
    notes = "".join(f"; {key.replace('_', ' ')}: {value}" for key, value in result.notes.items())
    console.print(f"method {result.method}, {_seeds(result)}{variations}{notes}", highlight=False)
    if not result.data_free:
        console.print("[bold]not data-free[/]: the student was trained on real images", highlight=False)
    console.print()
    console.print(metrics_table(result))
    _print_published(result, console)
    console.print()
    console.print(cost_table(result))
    pictures = list(find_pictures(Path(path), result))
    if pictures:
        console.print("\nPictures", style="bold")
        for picture in pictures:
            console.print(Text(f"  {picture}"), soft_wrap=True)  # a path is copied whole


def write_result_page(path: str | Path, output: str | Path) -> None:
    """Write the tables of a result as an HTML page."""
    result = read_result(path)
    notes = [f"{key.replace('_', ' ')}: {value}" for key, value in result.notes.items()]
    if result.augmentation is not None:
        notes.append(f"variations: {result.augmentation.backend}")
    plain = [row for row in result.published if row.metric in PUBLISHED_METRICS and not row.note]
    tables = [metrics_table(result), *([published_table(result, plain)] if plain else []), cost_table(result)]
    networks = "_".join(part.name for part in (result.teacher, result.student) if part is not None)
    write_page(
        output,
        "result.html",
        title=f"{result.dataset}: {networks.replace('_', ' → ')} by {result.method}",
        networks=_networks(result),
        data_free=result.data_free,
        notes="; ".join([_seeds(result), *notes]),
        tables=[_as_rows(table) for table in tables],
        provenance=_provenance(result),
    )


def _provenance(result: ResultFile) -> list[tuple[str, str]]:
    own = result.provenance
    machines = {", ".join(f"{key} {value}" for key, value in one.items()) for used in own.hardware.values() for one in used}
    return [
        ("written", own.date),
        ("configuration, SHA-256", own.config_hash),
        ("versions", ", ".join(f"{name} {version}" for name, version in own.versions.items())),
        ("source revision", own.revision),
        ("hardware", "; ".join(sorted(machines))),
        *((f"{name}, SHA-256", value) for name, value in own.artefacts.items()),
    ]


def _seeds(result: ResultFile) -> str:
    return f"seed {result.seeds[0]}" if len(result.seeds) == 1 else f"seeds {', '.join(map(str, result.seeds))}"


def _as_rows(table: Table) -> dict[str, Any]:
    """A table of rich for the template: title, names, rows with their style, and the last line if it has one."""
    columns = table.columns
    cells = zip(*(column.cells for column in columns), strict=True)
    return {
        "title": table.title,
        "heads": [column.header for column in columns],
        "rows": [(row.style or "", line) for row, line in zip(table.rows, cells, strict=False)],
        "foot": [column.footer for column in columns] if table.show_footer else [],
    }


def _networks(result: ResultFile) -> str:
    student = f"student {result.student.name} ({_short(result.student.params)} parameters)"
    if result.teacher is None:
        return f"{student}, trained from scratch"
    own = result.teacher
    return f"teacher {own.name} ({_short(own.params)} parameters, {own.acc1:.2f} %) → {student}"


def metrics_table(result: ResultFile) -> Table:
    """One row per metric: mean ± std of the last epoch, each seed, and the best published figure with its method."""
    table = Table(title="On the real test split (last epoch)", title_justify="left", title_style="bold")
    table.add_column("metric")
    table.add_column("mean ± std" if len(result.seeds) > 1 else "ours", justify="right", style="bold", no_wrap=True)
    if len(result.seeds) > 1:
        table.add_column("per seed", justify="right")
    for key, name, decimals, unit in ROWS:
        value: Statistic | None = getattr(result, key)
        if value is None:
            continue
        cells = [name, _statistic(value, decimals) + unit]
        if len(result.seeds) > 1:
            cells.append("  ".join(f"{number:.{decimals}f}" for number in value.per_seed))
        table.add_row(*cells)
    return table


def published_table(result: ResultFile, rows: list[PublishedFigure]) -> Table:
    """Ours first, then the methods by falling Acc@1; sources that print the same figures share a row."""
    keys = [key for key in ("acc1", "agree1", "lp") if any(PUBLISHED_METRICS[row.metric][0] == key for row in rows)]
    names = {key: (name, decimals, unit) for key, name, decimals, unit in ROWS}
    table = Table(title="Beside the published figures (most print the best epoch)", title_justify="left", title_style="bold")
    table.add_column("method")
    for key in keys:
        table.add_column(names[key][0] + names[key][2], justify="right", no_wrap=True)
    table.add_column("source")
    ours = [_statistic(value, names[key][1]) if (value := getattr(result, key)) else "" for key in keys]
    table.add_row(f"{result.method} (ours, last epoch)", *ours, "this run", style="bold", end_section=result.best_acc1 is None)
    if result.best_acc1 is not None:
        blanks = [""] * (len(keys) - 1)
        best = _statistic(result.best_acc1, 2)
        table.add_row(f"{result.method} (ours, best epoch)", best, *blanks, "this run", end_section=True)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key, factor = PUBLISHED_METRICS[row.metric]
        number = f"{factor * row.value:.{names[key][1]}f}" if isinstance(row.value, float) else row.value
        lines.setdefault((row.source.removesuffix(" table"), row.method), {})[key] = number
    sources: dict[tuple[str, ...], list[str]] = {}
    for (source, method), cells in lines.items():
        sources.setdefault((method, *(cells.get(key, "") for key in keys)), []).append(source)
    for row_cells in sorted(sources, key=_first_number, reverse=True):
        table.add_row(*row_cells, ", ".join(sources[row_cells]))
    return table


def cost_table(result: ResultFile) -> Table:
    """One row per stage, in the order of the pipeline, and their sum."""
    table = Table(title="What it took", title_justify="left", title_style="bold", show_footer=True)
    seconds = sum(cost.seconds for cost in result.cost.values())
    table.add_column("stage", footer="all")
    table.add_column("jobs", justify="right", footer=str(sum(cost.jobs for cost in result.cost.values())))
    table.add_column("time", justify="right", footer=duration(seconds))
    for name, key in (("images", "images"), ("teacher queries", "teacher_queries"), ("optimiser steps", "optimiser_steps")):
        table.add_column(name, justify="right", footer=f"{sum(getattr(cost, key) for cost in result.cost.values()):,.0f}")
    peak = max((cost.peak_memory for cost in result.cost.values()), default=0)
    table.add_column("peak memory", justify="right", footer=size(peak))
    joules = [cost.energy for cost in result.cost.values()]
    metered = any(value is not None for value in joules)
    if metered:
        table.add_column("energy", justify="right", footer=energy(sum_known(joules)))
    for stage, cost in result.cost.items():
        table.add_row(stage, str(cost.jobs), *_amounts(cost, metered))
        if cost.per_seed is not None and cost.jobs > 1:
            table.add_row("  per seed", "", *_amounts(cost.per_seed, metered), style="dim")
    return table


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum; None if one of the values, or every one, is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


def root_of(path: Path) -> Path:
    """The folder `results` that a result file lies in, by its `runs`: its own folder or the one above."""
    return next((folder for folder in (path.parent, *path.parent.parents[:1]) if (folder / "runs").is_dir()), path.parent)


def find_pictures(path: Path, result: ResultFile) -> Iterable[Path]:
    """PNGs beside the teacher, the banks (if the method uses any) and the runs of this result, below its folder `results`."""
    root = root_of(path)
    if result.teacher is None:
        yield from sorted((root / "runs" / result.method / f"{result.dataset}_{result.student.name}").rglob("*.png"))
        return
    source = f"{result.dataset}_{result.teacher.name}"
    method = METHODS.get(result.method)
    banks = [root / "banks" / source] if method is None or method.banks else []
    run = root / "runs" / result.method / f"{source}_{result.student.name}"
    for folder in (root / "teachers" / source, *banks, run):
        yield from sorted(folder.rglob("*.png"))


def _print_published(result: ResultFile, console: Console) -> None:
    comparable = [row for row in result.published if row.metric in PUBLISHED_METRICS]
    plain = [row for row in comparable if not row.note]
    if plain:
        console.print()
        console.print(published_table(result, plain))
    else:
        console.print("No published figures for this data set and pair.", style="dim")
    left = len(result.published) - len(plain)
    if left:
        console.print(
            f"{left} more published figures (hours, single runs, figures with a caveat) are in the file.",
            style="dim",
            highlight=False,
        )


def _first_number(cells: tuple[str, ...]) -> float:
    """What a row of the published figures is sorted by: its first column, which may be a word or empty."""
    try:
        return float(cells[1])
    except ValueError:
        return float("-inf")


def _statistic(value: Statistic, decimals: int) -> str:
    spread = "" if value.std is None else f" ± {value.std:.{decimals}f}"
    return f"{value.mean:.{decimals}f}{spread}"


def _amounts(cost: Amounts, metered: bool) -> list[str]:
    counts = [f"{number:,.0f}" for number in (cost.images, cost.teacher_queries, cost.optimiser_steps)]
    return [duration(cost.seconds), *counts, size(cost.peak_memory), *([energy(cost.energy)] if metered else [])]


def duration(seconds: float) -> str:
    """Seconds for people: `8.5 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def energy(joules: float | None) -> str:
    """Joules for people, in Wh or kWh with three digits; a dash where they are not known."""
    if joules is None:
        return "–"
    hours = joules / 3600
    return f"{hours / 1000:.3g} kWh" if hours >= 999.5 else f"{hours:.3g} Wh"


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
