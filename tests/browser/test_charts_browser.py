import plotly.graph_objects as go

from dfkd import pages


def test_a_page_unpacks_plotly_and_draws_every_chart(page, tmp_path, monkeypatch):
    source = '{% extends "page.html" %}{% block content %}{{ chart }}{% endblock %}'
    source += '{% block scripts %}{{ super() }}{% include "plotly.html" %}{% endblock %}'
    loader = pages.environment().loader
    stored = loader.get_source
    monkeypatch.setattr(
        loader,
        "get_source",
        lambda environment, name: (source, None, lambda: True) if name == "browser_page.html" else stored(environment, name),
    )
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"), layout={"yaxis2": {"type": "log"}})
    path = tmp_path / "a.html"
    pages.write_page(path, "browser_page.html", title="chart", chart=pages.chart(figure, height=321))
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-charts=drawn]", timeout=60_000)
    assert page.evaluate("document.querySelector('.chart').data[0].y") == [3, 4]
    assert page.locator(".chart .main-svg").count() > 0
    assert page.locator(".chart").bounding_box()["height"] == 321
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
