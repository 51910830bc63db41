"""An opened image, two banks, features in the plane and runs in Chromium."""

import re

from browser_tools import INIT, RUN, RUNNING, VARIATIONS, bank_of, dialog, heading, helper
from playwright.sync_api import expect

from dfkd.bank.writer import BankWriter


def test_from_an_image_to_its_parent_and_variations(opened, folder, shoot):
    parents = bank_of(folder, VARIATIONS).parents.tolist()
    parent = next(i for i in range(60) if parents.count(i) == 2)
    first, second = (i for i, other in enumerate(parents) if other == parent)
    page = opened(f"view=bank&bank={VARIATIONS}")
    page.locator(f".grid [data-index='{first}']").click()
    expect(heading(page)).to_contain_text(f"image {first} of {VARIATIONS}")
    bars = dialog(page).locator(".answers tr")
    expect(bars).to_have_count(3, timeout=60_000)
    expect(bars.first.locator(".answer")).to_have_count(2)
    expect(dialog(page).get_by_label("Student")).to_contain_text("dda → wrn101, seed 0, last epoch, 75.0 %")
    neighbours = dialog(page).locator(".neighbours .cell")
    expect(neighbours).to_have_count(12)
    expect(dialog(page).locator(".values")).to_contain_text("bn_distance")
    shoot("viewer_image")
    dialog(page).locator(".family .cell").first.click()
    expect(heading(page)).to_contain_text(f"image {parent} of {INIT}")
    variations = dialog(page).locator(".family .strip").first.locator(".cell")
    expect(variations).to_have_count(2)
    assert [int(cell.get_attribute("data-index")) for cell in variations.all()] == [first, second]
    variations.nth(1).click()
    expect(heading(page)).to_contain_text(f"image {second} of {VARIATIONS}")
    page.go_back()
    expect(heading(page)).to_contain_text(f"image {parent} of {INIT}")
    page.reload()
    expect(heading(page)).to_contain_text(f"image {parent} of {INIT}")
    dialog(page).get_by_label("Look in").select_option(VARIATIONS)
    expect(page).to_have_url(re.compile("within=banks%2Fbars_wrn101%2Fvariations.lmdb"))
    expect(neighbours).to_have_count(12)
    page.keyboard.press("Escape")
    expect(dialog(page)).to_have_count(0)
    expect(page).not_to_have_url(re.compile("image="))


def test_rejected_variations_are_beside_the_accepted(opened, folder):
    dropped = bank_of(folder, helper.REJECTED).parents.tolist()
    page = opened(f"view=bank&bank={INIT}&image={dropped[0]}")
    section = dialog(page).locator(".family")
    expect(section.get_by_text("rejected by the fidelity filter")).to_be_visible()
    assert section.locator(".strip").last.locator(".cell").first.get_attribute("data-index") == "0"


def test_two_banks_beside_each_other(opened, folder, shoot):
    page = opened(f"view=compare&a={INIT}&b={VARIATIONS}", grids=2)
    expect(page.locator(".chart[data-ready=yes]")).to_have_count(2, timeout=60_000)
    counts = [bank_of(folder, name).labels.bincount(minlength=3).tolist() for name in (INIT, VARIATIONS)]
    assert page.evaluate("[...document.querySelectorAll('.chart')[0].data].map(trace => [...trace.y])") == counts
    buttons = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert len(buttons) == 12
    assert not any("hare" in title or "loud" in title for title in buttons)  # nothing is sent anywhere
    page.get_by_label("Score", exact=True).select_option("entropy")
    expect(page).to_have_url(re.compile("score=entropy"))
    page.get_by_label("Condition on images").fill("label == middle")
    page.keyboard.press("Enter")
    halves = page.locator(".half")
    expect(halves.nth(0)).to_contain_text(f"{counts[0][1]} of 60 images")
    expect(halves.nth(1)).to_contain_text(f"{counts[1][1]} of 89 images")
    shoot("viewer_compare")
    halves.nth(1).locator(".cell").first.click()
    expect(heading(page)).to_contain_text(VARIATIONS)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="swap").click()
    expect(halves.nth(0)).to_contain_text(VARIATIONS)


def test_features_in_the_plane(page, address, shoot):
    page.goto(f"{address}?view=scatter&bank={INIT}")
    plane = page.locator(".plane[data-ready=yes]")
    expect(plane).to_be_visible(timeout=60_000)
    expect(page.get_by_text("60 images. The plane holds")).to_be_visible()
    page.get_by_text("Together with").click()
    page.get_by_label("bars_wrn101/variations.lmdb").check()
    expect(page.get_by_text("149 images.")).to_be_visible(timeout=60_000)
    page.get_by_label("stage").check()
    expect(page).to_have_url(re.compile("by=bank"))
    expect(plane.locator(".traces")).to_have_count(2)
    mark = plane.locator(".points path").first.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    expect(page.locator(".plane-and-image .side")).to_contain_text("prediction")
    shoot("viewer_scatter")
    page.mouse.down()
    page.mouse.up()
    expect(dialog(page)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_label("t-SNE").check()
    expect(page).to_have_url(re.compile("method=tsne"))
    expect(page.get_by_text("149 images.", exact=False)).to_be_visible(timeout=60_000)


def test_measuring_on_request(page, own_address):
    page.goto(f"{own_address}?view=scatter&bank={VARIATIONS}")
    expect(page.get_by_text("has no features yet")).to_be_visible()
    page.goto(f"{own_address}?view=bank&bank={VARIATIONS}")
    page.get_by_role("button", name="Measure with the teacher").click()
    expect(page.get_by_role("button", name="bn_distance")).to_be_visible(timeout=60_000)
    page.goto(f"{own_address}?view=scatter&bank={VARIATIONS}")
    expect(page.get_by_text("89 images. The plane holds")).to_be_visible(timeout=60_000)


def test_a_run_is_followed_while_it_goes_on(page, own_folder, own_address, shoot):
    page.goto(f"{own_address}?view=runs")
    expect(page.locator(".followed")).to_contain_text(RUNNING)  # the one that goes on comes first
    expect(page.locator(".followed")).to_contain_text("50.00 %")
    expect(page.locator(".followed")).to_contain_text("running")
    newest = page.get_by_role("region", name="Newest images").locator(".cell")
    expect(newest).to_have_count(10)
    expect(page.locator(".chart[data-ready=yes]")).to_have_count(2, timeout=60_000)
    rows = [{"epoch": 1, "loss": 2.0, "acc1": 50.0, "agree1": 55.0}, {"epoch": 2, "loss": 1.0, "acc1": 62.5, "agree1": 65.0}]
    helper.write_rows_csv(own_folder.results / helper.CHECKPOINT / "history.csv", rows)
    meta = own_folder.meta.model_copy(update={"extra": {"method": "dda"}})
    with BankWriter(own_folder.growing, meta) as writer:
        writer.append_images(own_folder.run_images[10:], own_folder.run_labels[10:])
    expect(page.locator(".followed")).to_contain_text("62.50 %", timeout=20_000)
    expect(newest).to_have_count(30)
    assert newest.first.get_attribute("data-index") == "29"
    assert page.evaluate("[...document.querySelector('.chart').data[0].y]") == [50, 62.5]
    page.get_by_label(f"show {RUN}").check()
    expect(page.locator(".followed")).to_have_count(2)
    shoot("viewer_runs")
    newest.first.click()
    expect(heading(page)).to_contain_text("image 29")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="all 30").click()
    expect(page.locator(".grid .cell")).to_have_count(30)


def test_names_are_shown_as_they_are(opened, shoot):
    page = opened("view=bank&bank=banks/odd/names.lmdb")
    name = helper.HOSTILE
    expect(page.get_by_role("group", name="Classes").get_by_text(name)).to_be_visible()
    expect(page.get_by_role("button", name=name).first).to_be_visible()
    page.locator(".grid .cell").first.click()
    expect(dialog(page).locator(".label")).to_contain_text(name)
    expect(dialog(page)).to_contain_text("teacher is not below this folder")
    page.keyboard.press("Escape")
    page.goto(page.url.split("?")[0] + "?view=compare&a=banks/odd/names.lmdb&b=" + INIT)
    expect(page.locator(".chart[data-ready=yes]").first).to_be_visible(timeout=60_000)
    assert page.locator("img[src=x]").count() == 0
