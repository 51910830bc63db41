"""The page of a bank in Chromium, opened from disk."""

import numpy as np
import pytest

from dfkd.errors import UserError
from dfkd.inspection.bank_page import write_bank_page
from dfkd.inspection.where import select

CONDITIONS = [
    "confidence < 0.7",
    "label == middle and not prediction == middle",
    "0.3 <= cosine < 0.6 or index in (0, 5, 7)",
    "label not in (top, 'bottom')",
    "duplicate_of >= 0 or constant == 1",
    "not (entropy > 0.1 and contrast >= 60) and brightness != 30",
    "label != prediction",
    "index > -1e1",
    "",
]
MISTAKES = ["label == toop", "confidence", "cosine <", "(index > 3", "index in 3", "confidence < 0.5 index", "1 <", "a b", "~"]


@pytest.fixture(scope="module")
def file(tree, reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "variations.html"
    write_bank_page(tree.variations, path, None, reference)
    return path


def wait_for(page, count):
    page.wait_for_function(f"document.querySelectorAll('#grid .thumb').length === {count}")


def dialog(page):
    return page.locator("#detail[open]")


def test_it_opens_from_disk_and_loads_nothing(page, file, shoot):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    wait_for(page, 180)
    assert page.locator("#status").inner_text() == "180 images"
    page.wait_for_selector("html[data-charts=drawn]", timeout=60_000)
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    shoot("bank_page")


def test_filter_by_class_stage_score_and_condition(page, file):
    page.goto(file.as_uri())
    data = page.evaluate("data")
    columns, stages = data["images"]["columns"], [data["stages"][stage]["name"] for stage in data["images"]["stage"]]
    page.get_by_role("checkbox", name="rejected").check()
    wait_for(page, stages.count("rejected"))
    page.get_by_role("checkbox", name="middle").check()
    wait_for(page, sum(stage == "rejected" and label == 1 for stage, label in zip(stages, columns["label"], strict=True)))
    page.get_by_text("Clear the filter").click()
    wait_for(page, 180)
    page.get_by_label("smallest cosine").fill("100")  # the middle of 200 steps
    low = (data["histograms"]["cosine"]["from"] + data["histograms"]["cosine"]["to"]) / 2
    wait_for(page, sum(value is not None and value >= low for value in columns["cosine"]))
    assert page.locator(".range.narrowed").count() == 1
    page.get_by_text("Clear the filter").click()
    page.keyboard.press("/")
    page.keyboard.type("confidence < 0.9")
    wait_for(page, sum(value < 0.9 for value in columns["confidence"]))
    page.keyboard.type(" and nonsense")
    page.wait_for_function("document.getElementById('fault').textContent !== ''")
    assert page.locator("#where").get_attribute("aria-invalid") == "true"


def test_conditions_mean_what_they_mean_elsewhere(page, file):
    page.goto(file.as_uri())
    data = page.evaluate("data")
    columns = {
        name: np.array([np.nan if value is None else value for value in values])
        for name, values in {**data["images"]["columns"], "index": data["images"]["index"]}.items()
    }
    read = "text => { const fits = readCondition(text, columns, classes); return images.index.map((_, row) => fits(row)); }"
    for text in CONDITIONS:
        assert page.evaluate(read, text) == select(text, columns, data["classes"]).tolist(), text
    for text in MISTAKES:
        with pytest.raises(UserError):
            select(text, columns, data["classes"])
        assert page.evaluate("text => { try { readCondition(text, columns, classes); } catch (e) { return e.message; } }", text)


def test_sort_group_and_size(page, file):
    page.goto(file.as_uri())
    confidence = page.evaluate("columns.confidence")
    page.locator("#group").select_option("nothing")
    page.locator("#sort").select_option("confidence")
    page.locator("#falling").check()
    page.wait_for_function("document.querySelector('#grid').classList.contains('valued')")
    rows = page.evaluate("[...document.querySelectorAll('#grid .thumb')].map(thumb => Number(thumb.dataset.row))")
    assert [confidence[row] for row in rows] == sorted(confidence, reverse=True)
    page.locator("#group").select_option("class and stage")
    page.wait_for_function("document.querySelectorAll('#grid .group').length === 9")
    page.locator("#scale").fill("0")
    small = page.locator("#grid .thumb").first.bounding_box()["width"]
    page.locator("#scale").fill(page.locator("#scale").get_attribute("max"))
    large = page.locator("#grid .thumb").first.bounding_box()["width"]
    assert small % 8 == large % 8 == 0
    assert large > 2 * small


def test_an_image_its_parent_and_its_siblings(page, file, shoot):
    page.goto(file.as_uri())
    data = page.evaluate("data.images")
    row = next(
        row for row, (bank, parent) in enumerate(zip(data["bank"], data["columns"]["parent"], strict=True)) if parent == 5
    )
    page.locator(f"#grid [data-row='{row}']").click()
    assert dialog(page).locator("h2").inner_text().startswith(f"variations {data['index'][row]}")
    family = [other for other, parent in enumerate(data["family"]) if parent == data["family"][row]]
    shown = dialog(page).locator(".relatives").first.locator(".thumb")
    assert [int(thumb.get_attribute("data-row")) for thumb in shown.all()] == [data["family"][row], *family]
    assert dialog(page).locator(".tops div").count() == 3
    shoot("bank_page_image")
    shown.first.click()
    assert dialog(page).locator("h2").inner_text().startswith("init 5")
    assert "same pixels" not in dialog(page).inner_text()
    assert "Equal images in this bank" in dialog(page).inner_text()  # 11 is its twin
    page.keyboard.press("ArrowDown")
    assert page.evaluate("opened") == family[0]
    page.keyboard.press("ArrowUp")
    assert page.evaluate("opened") == data["family"][row]
    page.keyboard.press("Escape")
    assert dialog(page).count() == 0


def test_keys_lead_through_the_images(page, file):
    page.goto(file.as_uri())
    view = page.evaluate("view")
    page.keyboard.press("ArrowRight")
    focused = "Number(document.activeElement.dataset.row)"
    assert page.evaluate(focused) == view[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == view[1]
    before = page.locator(":focus").bounding_box()
    page.keyboard.press("ArrowDown")
    after = page.locator(":focus").bounding_box()
    assert (after["x"], after["y"] > before["y"]) == (before["x"], True)
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == view[1]
    page.keyboard.press("Enter")
    assert page.evaluate("opened") == view[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("opened") == view[3]
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == view[3]
    assert page.locator("#grid [tabindex='0']").count() == 1


def test_the_address_restores_what_was_chosen(page, file, browser):
    page.goto(file.as_uri())
    page.get_by_role("checkbox", name="accepted").check()
    page.get_by_role("checkbox", name="bottom").check()
    page.locator("#where").fill("confidence > 0.2")
    page.get_by_label("largest entropy").fill("150")
    page.locator("#sort").select_option("cosine")
    page.locator("#group").select_option("stage")
    page.wait_for_function("location.hash.includes('group=stage')")
    rows = page.evaluate("view")
    page.locator(f"#grid [data-row='{rows[2]}']").click()
    address, state = page.url, page.evaluate("state")
    other = browser.new_page()
    other.goto(address)
    assert other.evaluate("state") == state
    assert other.evaluate("view") == rows
    assert other.evaluate("opened") == rows[2]
    assert other.locator("#where").input_value() == "confidence > 0.2"
    assert other.get_by_role("checkbox", name="accepted").is_checked()
    other.close()
    page.keyboard.press("Escape")
    page.evaluate("location.hash = '#where=index+<+3&tab=provenance&sort=nonsense'")  # what is not known is passed over
    page.wait_for_function("state.where === 'index < 3'")
    assert page.evaluate("[state.tab, state.sort, state.classes]") == ["provenance", "", []]
    assert page.locator("#provenance").is_visible()
    assert page.locator("#images").is_hidden()


def test_charts_lead_to_images(page, file, shoot):
    page.goto(f"{file.as_uri()}#tab=statistics")
    page.wait_for_selector("#plots-scores .main-svg", timeout=60_000)
    assert page.locator("#plots-scores .plot").count() == 7
    total = page.evaluate("document.getElementById('plot-counts').data.flatMap(bar => bar.y).reduce((a, b) => a + b)")
    assert total == 180
    shoot("bank_page_statistics")
    page.locator("[data-where='constant == 1']").click()
    wait_for(page, 1)
    page.get_by_text("Clear the filter").click()
    page.get_by_role("tab", name="Features").click()
    page.wait_for_selector("#plot-features .points path", timeout=60_000)
    assert page.evaluate("document.getElementById('plot-features').data.flatMap(trace => trace.x).length") == 180
    page.locator("#colour").select_option("cosine")
    page.wait_for_function("document.getElementById('plot-features').data.length === 1")
    place = page.locator("#plot-features .points path").first.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.wait_for_function("!document.getElementById('tip').hidden")
    shoot("bank_page_features")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#detail[open]")
    links = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert not any("hare" in title or "loud" in title for title in links)  # nothing is sent anywhere


def test_a_narrow_window(page, file, shoot):
    page.set_viewport_size({"width": 800, "height": 900})
    page.goto(file.as_uri())
    wait_for(page, 180)
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert page.locator("#where").is_hidden()
    page.keyboard.press("/")
    assert page.locator("#where").is_visible()
    shoot("bank_page_narrow")
