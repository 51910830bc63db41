"""The list of banks and the pages of a bank in Chromium."""

import re

import numpy as np
import pytest
from browser_tools import INIT, VARIATIONS, bank_of, dialog, focused, heading, helper, shown
from playwright.sync_api import expect

from dfkd.bank.writer import BankWriter


def test_all_banks_broken_ones_among_them(page, address, shoot):
    page.goto(address)
    rows = page.locator(".banks tbody tr")
    expect(rows).to_have_count(7)
    broken = rows.filter(has_text="truncated.lmdb")
    expect(broken).to_contain_text("broken")
    expect(broken).to_contain_text("truncated, 9000 of at least")
    expect(broken.get_by_role("link")).to_have_count(0)
    expect(rows.filter(has_text="growing")).to_have_count(1)
    expect(page.get_by_text("7 of 7 banks, 1 broken")).to_be_visible()
    expect(rows.filter(has_text="init.lmdb").locator("canvas")).to_have_count(10)
    shoot("viewer_banks")
    page.get_by_label("Find a bank").fill("variations bars")
    expect(rows).to_have_count(1)
    page.get_by_label("Find a bank").fill("no such bank")
    expect(page.get_by_text("No bank fits these words.")).to_be_visible()
    page.get_by_label("Find a bank").fill("")
    page.get_by_role("link", name="variations.lmdb").click()
    expect(page.locator(".grid .cell")).to_have_count(89)
    page.go_back()
    expect(rows).to_have_count(7)


def test_the_pixels_on_the_screen_are_those_of_the_bank(opened, folder):
    page = opened(f"view=bank&bank={INIT}&zoom=32")
    place = page.locator(".grid .picture").nth(17)
    box, sheet = place.bounding_box(), page.locator(".sheet").bounding_box()
    left, top = round(box["x"] - sheet["x"]), round(box["y"] - sheet["y"])
    read = f"[...document.querySelector('.sheet').getContext('2d').getImageData({left}, {top}, 32, 32).data]"
    pixels = np.array(page.evaluate(read), dtype=np.uint8).reshape(32, 32, 4)
    expected = bank_of(folder, INIT).images[17, 0].numpy().repeat(4, 0).repeat(4, 1)
    assert np.array_equal(pixels[..., 0], expected)
    assert np.array_equal(pixels[..., 2], expected)


def test_filter_sort_and_classes(opened, folder, shoot):
    page = opened(f"view=bank&bank={VARIATIONS}")
    stored = bank_of(folder, VARIATIONS)
    cosine, label = stored.scores["cosine"].numpy(), stored.labels.numpy()
    page.keyboard.press("/")
    page.keyboard.type("cosine > 0.5 and label != top")
    page.keyboard.press("Enter")
    expected = [i for i in range(89) if cosine[i] > 0.5 and label[i] != 0]
    expect(page.get_by_text(f"{len(expected)} of 89 images")).to_be_visible()
    assert shown(page) == expected
    page.get_by_label("Sort by").select_option("cosine")
    page.get_by_label("rising; turn to falling").click()
    ordered = sorted(expected, key=lambda i: (-cosine[i], i))
    expect(page.locator(".grid .cell").first).to_have_attribute("data-index", str(ordered[0]))
    assert shown(page) == ordered
    expect(page.locator(".grid .caption").first).to_have_text(f"{cosine[ordered[0]]:.3g}")
    page.get_by_role("group", name="Classes").get_by_role("button", name="bottom").click()
    expect(page.get_by_text(f"{sum(label[i] == 2 for i in expected)} of 89 images")).to_be_visible()
    assert shown(page) == [i for i in ordered if label[i] == 2]
    shoot("viewer_filter")
    state = page.evaluate("Object.fromEntries(new URLSearchParams(location.search))")
    assert state == {
        "view": "bank", "bank": VARIATIONS, "where": "cosine > 0.5 and label != top", "sort": "-cosine", "class": "2",
    }  # fmt: skip
    before = shown(page)
    page.reload()
    expect(page.locator(".grid[data-ready=yes]")).to_be_visible()
    assert shown(page) == before
    page.go_back()
    expect(page.get_by_text(f"{len(expected)} of 89 images")).to_be_visible()
    page.get_by_label("Clear the condition").click()
    expect(page.get_by_text("89 images", exact=True)).to_be_visible()
    page.get_by_role("button", name="bn_distance").click()
    expect(page).to_have_url(re.compile("sort=bn_distance"))
    page.get_by_label("Size of the images").fill("0")
    expect(page).to_have_url(re.compile("zoom=24"))
    assert page.locator(".picture").first.bounding_box()["width"] == 24


def test_mistakes_are_told_where_they_are_made(browser, address):
    tab = browser.new_page()
    tab.goto(f"{address}?view=bank&bank={VARIATIONS}")
    expect(tab.locator(".grid .cell")).to_have_count(89)
    tab.get_by_label("Condition on images").fill("cosin > 0.5")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert").filter(has_text="no column 'cosin'; the nearest known: cosine")).to_be_visible()
    tab.get_by_label("Condition on images").fill("cosine > 5")
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("No image fulfils this condition.")).to_be_visible()
    tab.goto(f"{address}?view=bank&bank=banks/odd/truncated.lmdb")
    expect(tab.get_by_role("alert")).to_contain_text("banks/odd/truncated.lmdb: truncated, 9000 of at least")
    tab.goto(f"{address}?view=bank&bank=../secret.lmdb")
    expect(tab.get_by_role("alert")).to_contain_text("no name of a file below the folder")
    tab.get_by_role("link", name="Banks").click()
    expect(tab.locator(".banks tbody tr")).to_have_count(7)
    tab.close()


def test_keys_lead_through_images_and_pages(opened):
    page = opened(f"view=bank&bank={INIT}&sort=confidence")
    order = shown(page)
    page.locator(".grid .cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert focused(page) == order[1]
    box = page.locator(":focus").bounding_box()
    page.keyboard.press("ArrowDown")
    below = page.locator(":focus").bounding_box()
    assert (below["x"], below["y"] > box["y"]) == (box["x"], True)
    page.keyboard.press("ArrowUp")
    assert focused(page) == order[1]
    expect(page.locator(".status")).to_contain_text(f"image {order[1]}")
    assert page.locator(".grid [tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    expect(heading(page)).to_contain_text(f"image {order[1]} of")
    page.keyboard.press("ArrowRight")
    expect(heading(page)).to_contain_text(f"image {order[2]} of")
    page.keyboard.press("ArrowLeft")
    expect(heading(page)).to_contain_text(f"image {order[1]} of")
    page.keyboard.press("Escape")
    expect(dialog(page)).to_have_count(0)
    assert focused(page) == order[1]
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("+")
    expect(page).to_have_url(re.compile("zoom="))


@pytest.fixture(scope="module")
def large(folder, tmp_path_factory):
    """A bank of 450 images: three pages."""
    results = tmp_path_factory.mktemp("large") / "results"
    repeated = folder.run_images.repeat(15, 1, 1, 1)
    helper.publish(results / "large.lmdb", folder.meta, repeated, folder.run_labels.repeat(15))
    with helper.served(results) as found:
        yield found


def test_pages_are_turned(page, large):
    page.goto(f"{large}?view=bank&bank=large.lmdb")
    first = page.locator(".grid .cell").first
    expect(first).to_have_attribute("data-index", "0")
    for key, index, number in (("PageDown", 200, 2), ("End", 400, 3), ("PageUp", 200, 2), ("Home", 0, 1)):
        page.keyboard.press(key)
        expect(first).to_have_attribute("data-index", str(index))
        expect(page.get_by_label("Page", exact=True)).to_have_value(str(number))
    page.locator(".grid .cell:visible").last.focus()
    page.keyboard.press("ArrowRight")  # over the edge
    expect(first).to_have_attribute("data-index", "200")
    expect(first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".grid [data-index='199']")).to_be_focused()
    page.keyboard.press("Enter")
    expect(heading(page)).to_contain_text("image 199")
    page.keyboard.press("ArrowRight")
    expect(heading(page)).to_contain_text("image 200")
    page.keyboard.press("Escape")
    expect(first).to_have_attribute("data-index", "200")
    page.get_by_label("Page", exact=True).fill("3")
    page.keyboard.press("Enter")
    expect(page.locator(".grid .cell:visible")).to_have_count(50)
    expect(page.get_by_label("next page (Page Down)")).to_be_disabled()
    turns = page.evaluate("performance.getEntriesByName('page turn').length")
    assert turns >= 6
    page.goto(f"{large}?view=bank&bank=large.lmdb&page=77")
    expect(page).to_have_url(re.compile("page=2$"))


def test_a_growing_bank_grows_on_the_screen(page, own_folder, own_address):
    page.goto(f"{own_address}?view=bank&bank={helper.CHECKPOINT}/bank.lmdb")
    expect(page.locator(".grid .cell:visible")).to_have_count(10)
    meta = own_folder.meta.model_copy(update={"extra": {"method": "dda"}})
    with BankWriter(own_folder.growing, meta) as writer:
        writer.append_images(own_folder.run_images[10:], own_folder.run_labels[10:])
    expect(page.locator(".grid .cell:visible")).to_have_count(30, timeout=20_000)


@pytest.mark.parametrize("width", [900, 700])
def test_narrow_windows(opened, shoot, width):
    for number, query in enumerate(
        (f"view=bank&bank={INIT}", f"view=compare&a={INIT}&b={VARIATIONS}", f"view=bank&bank={INIT}&image=3")
    ):
        page = opened(query, grids=2 if "compare" in query else 1)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)  # for the next frame, which lays the images anew
        assert page.evaluate("document.documentElement.scrollWidth") <= width, query
        shoot(f"viewer_{width}_{number}")


def test_nothing_jumps_while_a_page_is_loaded(opened):
    page = opened(f"view=bank&bank={INIT}")
    page.evaluate(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries()) shift += entry.value; })"
        ".observe({ type: 'layout-shift', buffered: true })"
    )
    page.get_by_role("button", name="entropy").click()
    expect(page.locator(".grid .caption").first).not_to_have_text("top")
    page.locator(".grid .cell").nth(3).hover()
    page.wait_for_timeout(300)
    assert page.evaluate("window.shift") < 0.02
