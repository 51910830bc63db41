"""A comparison of methods to look at: one HTML file that loads nothing, its figure as PNG and its table as CSV beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dfkd.evaluation.compare import Row, read_correct, read_results, table, teacher_of, write_csv
from dfkd.evaluation.compare_figure import draw_costs, draw_figure, draw_images, read_curve, stack
from dfkd.evaluation.formats import ResultFile
from dfkd.evaluation.noise import FEWEST_SEEDS, LEVEL
from dfkd.files import atomic_path
from dfkd.pages import check_page, picture_uri, write_page

# Title of a column, what it means.
PUBLISHED = (
    ("published", "Acc@1 of the same pair, %; the highest where sources differ; the source on the figure"),
    ("last − published", "percentage points"),
    ("best − published", "percentage points"),
)
ENERGY = (("Wh", "of one student: CPU packages and GPU, whatever else ran on them included"),)
COLUMNS = (
    ("method", "grey: a control"),
    ("Acc@1", "last epoch, %, mean ± standard deviation over the seeds"),
    ("to the best", "Acc@1 minus that of the best data-free method, percentage points, with its interval"),
    ("best epoch", "Acc@1 of the epoch chosen on the test split, %"),
    ("Agree@1", "share of test images on which student and teacher choose the same class, %"),
    ("L_p", "probability loyalty, mean of 1 − JSD^(1/4)"),
    ("seconds", "of one student: the method's banks and its distillation"),
    ("images", "synthesised for one student"),
    ("teacher queries", "images that the teacher classified for one student"),
)


def write_comparison(paths: Sequence[Path], runs: Path, output: Path) -> list[Row]:
    """Compare the methods of these result files; writes `output` (HTML) and .png and .csv beside it.

    Args:
        paths: result files of one target, one a method.
        runs: `results/runs`, where their histories, banks and predictions lie.
        output: the HTML file.

    Raises:
        UserError: a file is absent, broken or of another target, or a result does not fit its run.
    """
    check_page(output)
    results = read_results(paths)
    rows = table(results, read_correct(results, runs))
    by_method = {result.method: result for result in results}
    ordered = [by_method[row.method] for row in rows]
    curves = [read_curve(result, runs) for result in ordered]
    figure, costs, sheet = draw_figure(rows, curves), draw_costs(rows), draw_images(ordered, runs)
    content = page(ordered[0], rows, figure, costs, sheet)
    write_csv(rows, output.with_suffix(".csv"))
    with atomic_path(output.with_suffix(".png")) as temporary:
        stack([picture for picture in (figure, costs, sheet) if picture]).save(temporary, format="PNG")
    write_page(output, "compare.html", **content)
    return rows


def page(
    first: ResultFile, rows: Sequence[Row], figure: Image.Image, costs: Image.Image | None, sheet: Image.Image | None
) -> dict[str, Any]:
    """What the template of the comparison is filled with.

    The columns of energy and of published figures are there if any row has one.
    """
    metered, published = (any(getattr(row, key) is not None for row in rows) for key in ("energy", "published"))
    return {
        "title": f"{first.dataset}: {teacher_of(first).name} → {first.student.name}",
        "teacher": teacher_of(first),
        "student": first.student,
        "about_noise": _about_noise(rows),
        "columns": (*COLUMNS, *(ENERGY if metered else ()), *(PUBLISHED if published else ())),
        "rows": [(row, _cells(row, metered, published)) for row in rows],
        "figure": picture_uri(figure),
        "costs": None if costs is None else picture_uri(costs),
        "sheet": None if sheet is None else picture_uri(sheet),
    }


def _about_noise(rows: Sequence[Row]) -> str:
    if all(row.exceeds_noise is None for row in rows):
        return f"Fewer than {FEWEST_SEEDS} seeds: which differences are more than noise is not known."
    return (
        f"A difference to the best data-free method is marked ● when its {100 * LEVEL:.0f} % interval leaves out 0 "
        "(paired bootstrap over test images and seeds, each method on its own), ○ when it may be noise."
    )


def _cells(row: Row, metered: bool, published: bool) -> list[tuple[Any, str, str, str]]:
    """Of each column after the method's name: the value that it is sorted by, the words, small ones below, a title."""
    mark = "" if row.exceeds_noise is None else ("● " if row.exceeds_noise else "○ ")
    interval = "" if row.to_best_low is None else f"{row.to_best_low:+.2f} to {row.to_best_high:+.2f}"
    cells: list[tuple[Any, str, str, str]] = [
        (row.acc1, _spread(row.acc1, row.acc1_std, 2), "", ""),
        (row.to_best, f"{mark}{row.to_best:+.2f}", interval, ""),
        (row.best_acc1, _spread(row.best_acc1, row.best_acc1_std, 2), "", ""),
        (row.agree1, _spread(row.agree1, row.agree1_std, 2), "", ""),
        (row.lp, _spread(row.lp, row.lp_std, 4), "", ""),
        (row.seconds, f"{row.seconds:,.0f}", "", ""),
        (row.images, f"{row.images:,.0f}", "", ""),
        (row.teacher_queries, f"{row.teacher_queries:,.0f}", "", ""),
    ]
    if metered:
        cells.append((row.energy, "" if row.energy is None else f"{row.energy / 3600:,.3g}", "", ""))
    if published:
        figure = "" if row.published is None else f"{row.published:.2f}"
        cells += [
            (row.published, figure, "", row.published_source),
            (row.last_minus_published, _signed(row.last_minus_published), "", ""),
            (row.best_minus_published, _signed(row.best_minus_published), "", ""),
        ]
    return cells


def _spread(value: float | None, spread: float | None, decimals: int) -> str:
    if value is None:
        return ""
    return f"{value:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
