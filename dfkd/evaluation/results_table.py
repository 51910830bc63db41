"""Groups of results as tables: on the terminal, as Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dfkd.errors import UserError, nearest
from dfkd.evaluation.compare import Row
from dfkd.evaluation.gather import Entry, Fault, Group
from dfkd.evaluation.noise import LEVEL
from dfkd.evaluation.show import duration, energy
from dfkd.files import atomic_path

WIDTH = 200  # of a table that goes to a file or a pipe
LISTED = 8  # files without a result that are named
# A narrow terminal loses these columns first.
SPARED = ("L_p", "images", "best epoch", "energy", "data-free", "queries", "seeds", "last − publ.", "published")


SUFFIXES = {".csv": "csv", ".md": "markdown", ".tex": "latex", ".json": "json"}  # of a file to the form of what it holds
FORMATS = ("table", *SUFFIXES.values())


@dataclass(frozen=True)
class Column:
    """One figure of a line; left out of a table in which it is empty throughout."""

    title: str
    text: Callable[[Entry], str]


def _spread(value: float | None, spread: float | None, decimals: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}".replace("-", "−")


def _method(entry: Entry) -> str:
    control = " (control)" if entry.row.control else ""
    return f"{entry.row.method}{control}" + (f" [{entry.found.path}]" if entry.ambiguous else "")


def _seeds(entry: Entry) -> str:
    """Seeds for people: `0`, `0–2`, `0, 3, 7`."""
    seeds = entry.found.result.seeds
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _to_best(entry: Entry) -> str:
    mark = {True: "● ", False: "○ ", None: ""}[entry.row.exceeds_noise]
    return "best" if entry.best else mark + _signed(entry.row.to_best)


COLUMNS = (
    Column("method", _method),
    Column("seeds", _seeds),
    Column("Acc@1", lambda entry: _spread(entry.row.acc1, entry.row.acc1_std)),
    Column("to best", _to_best),
    Column("best epoch", lambda entry: _spread(entry.row.best_acc1, entry.row.best_acc1_std)),
    Column("Agree@1", lambda entry: _spread(entry.row.agree1, entry.row.agree1_std)),
    Column("L_p", lambda entry: _spread(entry.row.lp, entry.row.lp_std, 4)),
    Column("published", lambda entry: _spread(entry.row.published, None)),
    Column("last − publ.", lambda entry: _signed(entry.row.last_minus_published)),
    Column("data-free", lambda entry: "yes" if entry.row.data_free else "no"),
    Column("time", lambda entry: duration(entry.row.seconds)),
    Column("images", lambda entry: f"{entry.row.images:,.0f}"),
    Column("queries", lambda entry: f"{entry.row.teacher_queries:,.0f}"),
    Column("energy", lambda entry: "" if entry.row.energy is None else energy(entry.row.energy)),
)


def format_of(name: str | None, output: Path | None) -> str:
    """The form that is asked for: `name`, or that of the file's suffix, or the terminal's table.

    Raises:
        UserError: there is no such form.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"--format {name}: no such format; {nearest(name, FORMATS)}.")
    return name or SUFFIXES.get(output.suffix if output else "", "table")


def write_groups(groups: Sequence[Group], faults: Sequence[Fault], form: str, output: Path | None) -> None:
    """Print the groups in one of `FORMATS`, or write them to a file, whole or not at all."""
    console = Console()
    if form == "table" and output is None and console.is_terminal:
        print_table(groups, console)
        return
    texts = {"table": as_text, "csv": as_csv, "markdown": as_markdown, "latex": as_latex}
    text = as_json(groups, faults) if form == "json" else texts[form](groups)
    if output is None:
        print(text, end="")
        return
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def columns_of(group: Group) -> list[Column]:
    """The columns that say something of this group."""
    return [column for column in COLUMNS if any(column.text(entry) for entry in group.entries)]


def title_of(group: Group) -> str:
    """What a group is of: data set, teacher, student and test split."""
    teacher, images = group.first.teacher, "" if group.images is None else f", {group.images:,} test images"
    if teacher is None:
        return f"{group.dataset}: {group.pair} from scratch{images}"
    sha = f" (weights {group.teacher_sha256[:8]})" if group.one_of_several else ""
    return f"{group.dataset}: {group.pair.replace('_', ' → ')}, teacher {teacher.acc1:.2f} %{sha}{images}"


def legend(groups: Sequence[Group]) -> list[str]:
    """What the marks in these groups mean, rule by rule, and the notes of the groups."""
    lines = ["Acc@1, Agree@1 in %: last epoch, mean ± standard deviation over the seeds. Costs: of one student."]
    rules = {entry.row.noise for group in groups for entry in group.entries if not entry.best}
    if "bootstrap" in rules:
        lines.append(
            f"●: more than noise, ○: may be noise: paired bootstrap over test images and seeds, {100 * LEVEL:.0f} % interval."
        )
    if "binomial" in rules:
        lines.append(
            "○ with fewer than three seeds or no predictions: within the noise of the test split alone (binomial, "
            f"{100 * LEVEL:.0f} %); no mark there: whether it is more than noise is not known."
        )
    if "" in rules:
        lines.append("Neither: the size of the test split is not known, so nothing is said of noise.")
    return lines + [f"{title_of(group)}: {group.note}." for group in groups if group.note]


def print_table(groups: Sequence[Group], console: Console) -> None:
    """Print the groups; a terminal that is too narrow loses columns, and says which."""
    for group in groups:
        columns, left = columns_of(group), list[str]()
        spared = [name for name in SPARED if any(column.title == name for column in columns)]
        while (drawn := _rich(group, columns)) and spared and _width(drawn, console) > console.width:
            left.append(spared.pop(0))
            columns = [column for column in columns if column.title != left[-1]]
        console.print(Text(title_of(group), style="bold"))
        console.print(drawn)
        if left:
            console.print(f"Too narrow for {', '.join(left)}; a wider terminal or --format csv has them.", style="dim")
        console.print()
    for line in legend(groups):
        console.print(line, style="dim", highlight=False)


def _rich(group: Group, columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        left = column.title == "method"
        table.add_column(column.title, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for entry in group.entries:
        table.add_row(*(Text(column.text(entry), style=_style(column, entry)) for column in columns))
    return table


def _style(column: Column, entry: Entry) -> str:
    if column.title in ("method", "Acc@1", "to best") and entry.best:
        return "bold"
    return "bright_black" if column.title == "to best" and entry.row.exceeds_noise is False else ""


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def as_text(groups: Sequence[Group]) -> str:
    """The terminal's tables without colours."""
    file = io.StringIO()
    print_table(groups, Console(file=file, width=WIDTH, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def as_markdown(groups: Sequence[Group]) -> str:
    """One table a group, the best in bold."""
    parts = []
    for group in groups:
        columns = columns_of(group)
        lines = [f"### {title_of(group)}", "", _piped(column.title for column in columns)]
        lines.append(_piped("---" if column.title == "method" else "---:" for column in columns))
        for entry in group.entries:
            texts = ((column, column.text(entry).replace("|", "\\|")) for column in columns)
            lines.append(_piped(f"**{text}**" if _style(column, entry) == "bold" else text for column, text in texts))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in legend(groups))]) + "\n"


def _piped(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


LATEX = {sign: f"\\{sign}" for sign in "&%#_{}$"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "→": r"$\rightarrow$",
    "●": r"$\bullet$",
    "○": r"$\circ$",
}


def as_latex(groups: Sequence[Group]) -> str:
    """One `tabular` a group for booktabs and xcolor: the best in bold, differences that may be noise in grey."""
    parts = ["% \\usepackage{booktabs}\n% \\usepackage{xcolor}"]
    for group in groups:
        columns = columns_of(group)
        lines = [f"% {title_of(group)}", rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(_escaped(column.title) for column in columns) + r" \\", r"\midrule"]
        for entry in group.entries:
            lines.append(" & ".join(_latex(column, entry) for column in columns) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join([*parts, "\n".join(f"% {line}" for line in legend(groups))]) + "\n"


def _latex(column: Column, entry: Entry) -> str:
    text, style = _escaped(column.text(entry)), _style(column, entry)
    if style == "bold":
        return rf"\textbf{{{text}}}"
    return rf"\textcolor{{gray}}{{{text}}}" if style else text


def _escaped(text: str) -> str:
    return "$L_p$" if text == "L_p" else "".join(LATEX.get(sign, sign) for sign in text)


def as_csv(groups: Sequence[Group]) -> str:
    """All groups in one table, every figure unrounded; empty where there is none."""
    text = io.StringIO()
    fields = ["dataset", "pair", "teacher_sha256", "test_images", *Row.__dataclass_fields__, "file"]
    writer = csv.DictWriter(text, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for group in groups:
        own: dict[str, Any] = {"dataset": group.dataset, "pair": group.pair}
        own |= {"teacher_sha256": group.teacher_sha256, "test_images": group.images}
        for entry in group.entries:
            values = own | _figures(entry)
            writer.writerow({key: _cell(value) for key, value in values.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _figures(entry: Entry) -> dict[str, Any]:
    """A line for programs: the row, with the seeds themselves for their number, and the file."""
    return asdict(entry.row) | {"seeds": entry.found.result.seeds, "file": str(entry.found.path)}


def as_json(groups: Sequence[Group], faults: Sequence[Fault]) -> str:
    """The groups with their rows, every figure unrounded, and the files that hold no result."""
    content = {
        "groups": [
            {
                "dataset": group.dataset,
                "pair": group.pair,
                "teacher": None if group.first.teacher is None else group.first.teacher.model_dump(),
                "teacher_sha256": group.teacher_sha256,
                "student": group.first.student.model_dump(),
                "test_images": group.images,
                "note": group.note,
                "rows": [_figures(entry) for entry in group.entries],
            }
            for group in groups
        ],
        "unreadable": [{"file": str(fault.path), "reason": fault.reason} for fault in faults],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """The files that hold no result, a line each; of many the first."""
    lines = [f"left out: {fault.path}: {fault.reason}" for fault in faults[:LISTED]]
    return lines + ([f"left out: {len(faults) - LISTED} more JSON files that are no results"] if len(faults) > LISTED else [])
