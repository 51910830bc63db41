import base64
import io
import json
import re

import plotly.graph_objects as go
import pytest
from PIL import Image

from dfkd import pages
from dfkd.errors import UserError

PAGE = """{% extends "page.html" %}
{% from "parts.html" import facts, figures, picture %}
{% block content %}
{{ figures([("Acc@1", "95.1 %", "last <epoch>")]) }}{{ facts([("a & b", "<script>")]) }}
{{ picture(uri, "dots", pixels=true) }}{{ chart }}
{% endblock %}
{% block scripts %}{{ super() }}{% include "plotly.html" %}{% endblock %}
"""


@pytest.fixture
def template(monkeypatch, tmp_path):
    """A page of a template of the test's own, and the content that it takes."""
    own = pages.environment()
    source = own.loader.get_source

    def get(environment, name):
        return (PAGE, None, lambda: True) if name == "test_page.html" else source(environment, name)

    monkeypatch.setattr(own.loader, "get_source", get)
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"), layout={"yaxis2": {"type": "log"}})
    uri = pages.picture_uri(Image.new("RGB", (2, 1), "red"))
    return {"title": "<one & two>", "uri": uri, "chart": pages.chart(figure, height=321)}


def test_a_page_is_one_file_that_escapes_what_it_prints(template, tmp_path):
    pages.write_page(tmp_path / "a.html", "test_page.html", **template)
    text = (tmp_path / "a.html").read_text()
    assert "<title>&lt;one &amp; two&gt;</title>" in text
    assert "<dt>a &amp; b</dt><dd>&lt;script&gt;</dd>" in text
    assert "last &lt;epoch&gt;" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)  # nothing is loaded
    assert text.count('id="plotly"') == 1
    pages.write_page(tmp_path / "b.html", "test_page.html", **template)
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "a.html").read_bytes()


def test_a_chart_keeps_its_figure_and_cannot_leave_its_script(template):
    content = re.fullmatch(
        r'<div class="chart" style="height:321px"><script type="application/json">(.*)</script></div>', template["chart"]
    )[1]
    assert "<" not in content
    figure = json.loads(content)
    assert figure["data"] == [{"name": "</script><b>", "type": "scatter", "x": [1, 2], "y": [3, 4]}]
    assert figure["layout"]["yaxis2"] == {
        "exponentformat": "power",
        "gridcolor": "#e6e6e6",
        "linecolor": "#888",
        "zerolinecolor": "#ccc",
        "type": "log",
    }
    assert figure["layout"]["colorway"] == list(pages.COLOURS)


def test_pictures_come_back_as_they_were(tmp_path):
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    image.save(tmp_path / "a.png")
    for given in (image, tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        head, _, content = pages.picture_uri(given).partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).tobytes() == image.tobytes()
    with pytest.raises(UserError, match=r"none\.png: cannot be read"):
        pages.picture_uri(tmp_path / "none.png")


def test_a_page_has_to_be_an_html_file(tmp_path):
    with pytest.raises(UserError, match=r"a page is an HTML file"):
        pages.write_page(tmp_path / "a.txt", "page.html", title="")
    assert list(tmp_path.iterdir()) == []
