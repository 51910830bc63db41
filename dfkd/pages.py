"""Pages to look at: HTML files that carry styles, scripts, charts and pictures within, load nothing, and open from disk.

A page is a Jinja template in `dfkd/templates/` that extends `page.html`:

    {% extends "page.html" %}
    {% from "parts.html" import facts, figures, picture %}
    {% block content %}
    {{ figures([("Acc@1", "95.1 %", "last epoch")]) }}      large figures: name, value, note
    {{ chart }}                                              what `chart(figure)` gave
    {{ picture(uri, "images of the bank", pixels=true) }}    `uri` is what `picture_uri(file)` gave
    {{ facts([("seed", 0)]) }}                               names and values under each other
    {% endblock %}
    {% block scripts %}{{ super() }}{% include "plotly.html" %}{% endblock %}      only where there are charts

and is written by `write_page(path, "mine.html", title=…, chart=…, uri=…)`. Everything that a template prints is escaped.
A table of class `sortable` is sorted by a click on a column's name, by the cells' `data-value` where they have one. A script
of a page that needs `Plotly` itself waits for it: `plotlyReady.then(() => …)`.

A page's bytes depend on its content alone: no times, no random ids.

`snakemake --report report.html` shows a page as a data URI, of which Chromium takes 2 MB: a page of more than 1.5 MB stays
blank there, and so does any with charts. Such a page wants a smaller one beside it, with pictures in place of charts, to be
marked for the report.
"""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from PIL import Image

from dfkd.errors import UserError
from dfkd.files import atomic_path

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# The colours of lines, in the figures of matplotlib and in the charts of the pages.
COLOURS = ("#0b5394", "#cc4c02", "#3a7d44", "#7b3294", "#666666", "#b58900", "#00838f", "#ad1457")
FONT = "system-ui, sans-serif"


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja over the templates of this package: everything printed is escaped, an unknown name is an error."""
    loader = jinja2.PackageLoader("dfkd", "templates")
    own = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own.globals["packed_plotly"] = packed_plotly
    return own


def render(template: str, **content: Any) -> str:
    """The page as HTML; `page.html` wants a `title`."""
    return environment().get_template(template).render(**content) + "\n"


def write_page(path: str | Path, template: str, **content: Any) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: the path does not end in .html, or cannot be written.
    """
    check_page(path)
    text = render(template, **content)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_page(path: str | Path) -> None:
    """Refuse a path that does not end in .html."""
    if Path(path).suffix != ".html":
        raise UserError(f"{path}: a page is an HTML file; name one that ends in .html.")


def picture_uri(picture: str | Path | bytes | Image.Image) -> str:
    """A picture as a data URI: a PNG file, its bytes, or a picture of PIL.

    Raises:
        UserError: there is no such file.
    """
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        content = file.getvalue()
    elif isinstance(picture, bytes):
        content = picture
    else:
        try:
            content = Path(picture).read_bytes()
        except OSError as error:
            raise UserError(f"{picture}: cannot be read ({error.strerror}).") from None
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def chart(figure: Figure, height: int | None = None) -> Markup:
    """A plotly figure in the pages' look, as wide as its place; the page's template has to include `plotly.html`.

    Args:
        figure: its own layout goes before the pages'.
        height: pixels; the figure's own by default.
    """
    content = json.loads(figure.to_json())
    own = content["layout"]
    own.pop("template", None)  # 7 kB of defaults, most of them for other kinds of chart
    layout = {
        "font": {"family": FONT, "size": 12, "color": "#1a1a1a"},
        "colorway": list(COLOURS),
        "margin": {"l": 50, "r": 15, "t": 40, "b": 40},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "hoverlabel": {"bgcolor": "#fff"},
    }
    for name in (*(key for key in own if key.startswith(("xaxis", "yaxis"))), "xaxis", "yaxis"):
        own[name] = {
            "exponentformat": "power",
            "gridcolor": "#e6e6e6",
            "linecolor": "#888",
            "zerolinecolor": "#ccc",
            **own.get(name, {}),
        }
    content["layout"] = layout | own
    height = height or own.get("height", 400)
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(
        f'<div class="chart" style="height:{height}px"><script type="application/json">{text}</script></div>'
    )  # nothing in it can end the script: `<` is written as \u003c


@functools.cache
def packed_plotly() -> str:
    """plotly.js, compressed, as base64: 2 MB in place of 5; the browser unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")
