"""A comparison of methods to look at: one HTML file that loads nothing, its figure as PNG and its table as CSV beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dfkd.errors import UserError
from dfkd.evaluation.compare import Row, read_correct, read_results, table, teacher_of, write_csv
from dfkd.evaluation.compare_figure import draw_costs, draw_figure, draw_images, read_curve, stack
from dfkd.evaluation.formats import ResultFile
from dfkd.evaluation.noise import FEWEST_SEEDS, LEVEL
from dfkd.evaluation.page_style import SORT, STYLE
from dfkd.files import atomic_path

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
    if output.suffix != ".html":
        raise UserError(f"{output}: a comparison is an HTML file; name one that ends in .html.")
    results = read_results(paths)
    rows = table(results, read_correct(results, runs))
    by_method = {result.method: result for result in results}
    ordered = [by_method[row.method] for row in rows]
    curves = [read_curve(result, runs) for result in ordered]
    figure, costs, sheet = draw_figure(rows, curves), draw_costs(rows), draw_images(ordered, runs)
    content = page(ordered[0], rows, figure, costs, sheet)
    write_csv(rows, output.with_suffix(".csv"))
    with atomic_path(output.with_suffix(".png")) as temporary:
        stack([figure, *([costs] if costs else []), sheet]).save(temporary, format="PNG")
    with atomic_path(output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return rows


def page(first: ResultFile, rows: Sequence[Row], figure: Image.Image, costs: Image.Image | None, sheet: Image.Image) -> str:
    """The comparison as HTML: styles, script and pictures are within, nothing is loaded.

    The columns of energy and of published figures are there if any row has one.
    """
    teacher = teacher_of(first)
    title = f"{first.dataset}: {teacher.name} → {first.student.name}"
    metered, published = (any(getattr(row, key) is not None for row in rows) for key in ("energy", "published"))
    columns = (*COLUMNS, *(ENERGY if metered else ()), *(PUBLISHED if published else ()))
    head = "".join(f'<th title="{html.escape(meaning)}">{html.escape(name)}</th>' for name, meaning in columns)
    meanings = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>" for name, meaning in columns)
    body = "".join(_line(row, metered, published) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>Teacher: {teacher.acc1:.2f} % Acc@1, {teacher.params:,} parameters; student: {first.student.params:,} parameters.
{len(rows)} methods, on the real test split. {_about_noise(rows)}</p>
<p class="hint">A click on a column's name sorts by it.</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
<h2>Accuracy and learning curves</h2>
<img alt="Acc@1 of each method, by epoch and by time" src="{_uri(figure)}">
{_about_costs(costs)}<h2>What the methods synthesise</h2>
<p>The first images of the run's own bank, first seed; none for methods that make none of their own.</p>
<img class="pixels" alt="images of each method" src="{_uri(sheet)}">
<h2>Columns</h2>
<dl>{meanings}</dl>
<script>{SORT}</script>
</body>
</html>
"""


def _about_noise(rows: Sequence[Row]) -> str:
    if all(row.exceeds_noise is None for row in rows):
        return f"Fewer than {FEWEST_SEEDS} seeds: which differences are more than noise is not known."
    return (
        f"A difference to the best data-free method is marked ● when its {100 * LEVEL:.0f} % interval leaves out 0 "
        "(paired bootstrap over test images and seeds, each method on its own), ○ when it may be noise."
    )


def _about_costs(picture: Image.Image | None) -> str:
    if picture is None:
        return ""
    return f"""<h2>Accuracy against cost</h2>
<p>Of one student, the banks of its method included; logarithmic axes. Grey, hollow: a control; at the lower edge, with its
figure: far below the methods. On the grey line: no data-free method was both cheaper and more accurate, noise aside.</p>
<img alt="Acc@1 of each method against what it took" src="{_uri(picture)}">
"""


def _line(row: Row, metered: bool, published: bool) -> str:
    badge = "" if row.data_free else ' <span class="badge">not data-free</span>'
    mark = "" if row.exceeds_noise is None else ("● " if row.exceeds_noise else "○ ")
    interval = "" if row.to_best_low is None else f"<br><small>{row.to_best_low:+.2f} to {row.to_best_high:+.2f}</small>"
    source = html.escape(row.published_source, quote=True)
    cells = [
        f'<th scope="row">{html.escape(row.method)}{badge}</th>',
        _cell(row.acc1, _spread(row.acc1, row.acc1_std, 2)),
        _cell(row.to_best, f"{mark}{row.to_best:+.2f}{interval}"),
        _cell(row.best_acc1, _spread(row.best_acc1, row.best_acc1_std, 2)),
        _cell(row.agree1, _spread(row.agree1, row.agree1_std, 2)),
        _cell(row.lp, _spread(row.lp, row.lp_std, 4)),
        _cell(row.seconds, f"{row.seconds:,.0f}"),
        _cell(row.images, f"{row.images:,.0f}"),
        _cell(row.teacher_queries, f"{row.teacher_queries:,.0f}"),
    ]
    if metered:
        joules = row.energy
        cells.append(_cell(joules, "" if joules is None else f"{joules / 3600:,.3g}"))
    if published:
        cells += [
            _cell(row.published, "" if row.published is None else f'<span title="{source}">{row.published:.2f}</span>'),
            _cell(row.last_minus_published, _signed(row.last_minus_published)),
            _cell(row.best_minus_published, _signed(row.best_minus_published)),
        ]
    kind = ' class="control"' if row.control else ""
    return f"<tr{kind}>{''.join(cells)}</tr>\n"


def _cell(value: float | None, shown: str) -> str:
    """A table cell that sorts by `value`; an absent one comes last."""
    known = "" if value is None else str(value)
    return f'<td data-value="{known}">{shown}</td>'


def _spread(value: float | None, spread: float | None, decimals: int) -> str:
    if value is None:
        return ""
    return f"{value:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
