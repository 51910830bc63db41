"""The page of a campaign against an independent computation, from made-up results."""

import csv
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from urllib.parse import unquote

import pytest
from made_results import IMAGES, make
from PIL import Image
from typer.testing import CliRunner

from dfkd.campaigns import check_campaign
from dfkd.cli import app
from dfkd.errors import UserError
from dfkd.evaluation.campaign import gather, total_costs
from dfkd.evaluation.campaign_page import VIEWS, lines, write_campaign
from dfkd.evaluation.formats import ResultFile, read_result
from dfkd.evaluation.published import matching

CONTENT = {
    "title": "Two pairs <of> CIFAR-10",
    "description": "Made up.",
    "methods": ["dafl", "cmi", "real", "scratch"],
    "datasets": ["cifar10"],
    "pairs": ["wrn402_wrn161", "wrn402_wrn162"],
    "seeds": 3,
    "exclude": [{"method": "real", "pair": "wrn402_wrn162", "reason": "one is enough"}],
}
ACCURACIES = {
    ("dafl", "wrn161"): [70.0, 71.0, 72.0],
    ("cmi", "wrn161"): [88.0, 89.0, 90.0],
    ("real", "wrn161"): [93.0, 94.0, 95.0],
    ("scratch", "wrn161"): [91.0, 91.0, 91.0],
    ("dafl", "wrn162"): [80.0, 80.0, 80.0],
    ("cmi", "wrn162"): [80.1, 80.1, 80.1],
    ("scratch", "wrn162"): [92.0, 92.0, 92.0],
}
CAMPAIGN = check_campaign(CONTENT, "made up")


def make_all(root, left_out=()):
    for (method, student), values in ACCURACIES.items():
        if (method, student) not in left_out:
            make(root, method, values, student=student, folder="campaigns/two")
    return root / "results"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("campaign"))


class Tables(HTMLParser):
    """The cells' texts of every table, row by row, and all attributes; refuses elements that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tables, self.cell = [], [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip() and f"{data.strip()} "


def test_matrix(complete, tmp_path):
    output = tmp_path / "page.html"
    gathered = write_campaign("two", CAMPAIGN, complete, output)
    assert (gathered.done, gathered.missing) == (7, [])
    text = output.read_text(encoding="utf-8")
    page = Tables(text)
    head, *body = page.tables[0]
    assert head == ["method ", "wrn402 → wrn161 cifar10, teacher 94.87 ", "wrn402 → wrn162 cifar10, teacher 94.87 ", "mean "]
    cells = {row[0].split()[0]: row[1:] for row in body}
    assert list(cells) == CONTENT["methods"]
    published = {figure.value for figure in matching("cifar10", "wrn402", "wrn161") if figure.method == "CMI-scratch"}
    assert published == {88.82}
    assert cells["cmi"][0] == "89.00 ± 1.00 publ. 88.82 (+0.18) "
    assert cells["dafl"][0].startswith("71.00 ± 1.00 ● −18.00 ")
    assert cells["dafl"][1].startswith("80.00 ± 0.00 ○ −0.10 ")  # one image of 1,000
    assert cells["real"][1] == "– "
    assert cells["real"][2] == ""  # no mean without all columns
    assert cells["scratch"][0].startswith("91.00 ± 0.00")
    for method in ("cmi", "dafl", "scratch"):
        mean = fmean(fmean(ACCURACIES[method, student]) for student in ("wrn161", "wrn162"))
        assert cells[method][2] == f"{mean:.2f} "
    assert "not data-free" in body[2][0]
    assert "not data-free" not in body[0][0]
    assert ("td", "title", "one is enough") in page.attributes
    assert "Two pairs &lt;of&gt; CIFAR-10" in text


def test_best_of_a_column_is_bold_and_never_a_reference(complete):
    gathered = gather("two", CAMPAIGN, complete)
    found = {line.method: line for line in lines(gathered, VIEWS[0])}
    assert [cell.best for cell in found["cmi"].cells] == [True, True]
    assert found["cmi"].mean.best
    assert not any(cell.best for name in ("dafl", "real", "scratch") for cell in found[name].cells)
    assert [found[name].reference for name in CONTENT["methods"]] == [False, False, True, True]
    assert [cell.noise for cell in found["dafl"].cells] == [False, True]
    quickest = {line.method: line for line in lines(gathered, next(view for view in VIEWS if view.key == "seconds"))}
    assert {cell.value for cell in quickest["cmi"].cells} == {50.0}  # the bank, and one distillation
    assert quickest["scratch"].cells[0].value == 70.0
    agreement = {line.method: line for line in lines(gathered, VIEWS[2])}
    assert agreement["scratch"].cells[0].value is None


def test_costs_count_what_is_shared_once(complete):
    gathered = gather("two", CAMPAIGN, complete)
    totals = {total.stage: (total.jobs, total.amounts.seconds, total.amounts.images) for total in gathered.totals}
    assert list(totals) == ["teacher", "init-bank", "distill", "scratch", "evaluate"]
    assert totals["teacher"] == (1, 1000.0, 0)
    assert totals["init-bank"] == (1, 40.0, 800)
    assert totals["distill"] == (5 * 3, 5 * 3 * 10.0, 5 * 3 * 200)
    assert totals["scratch"] == (2 * 3, 2 * 3 * 70.0, 0)
    assert totals["evaluate"] == (7 * 3, 7 * 3 * 5.0, 0)


def test_another_teacher_is_counted_too(complete):
    one = read_result(complete / "campaigns/two/dafl/cifar10_wrn402_wrn161.json")
    other = one.model_copy(update={"teacher": one.teacher.model_copy(update={"name": "wrn401"})})
    again = one.model_copy(update={"cost": one.cost | {"teacher": one.cost["teacher"].model_copy(update={"seconds": 7.0})}})
    jobs = {total.stage: (total.jobs, total.amounts.seconds) for total in total_costs([one, other, one, again])}
    assert jobs["teacher"] == (3, 2007.0)  # two teachers, and one that was trained again
    assert jobs["distill"] == (2 * 3, 60.0)


def test_costs_of_students_with_blocks_hold_their_latency(complete):
    one = read_result(complete / "campaigns/two/dafl/cifar10_wrn402_wrn161.json")
    latency = [{"batch": 64, "train_ms": 3.0, "deploy_ms": 1.5, "ratio": 2.0}]
    found = one.model_dump(mode="json")
    found["cost"]["evaluate"]["latency"] = latency
    blocks = ResultFile.model_validate(found)
    assert blocks.cost["evaluate"].latency[0].ratio == 2.0
    assert {total.stage: total.jobs for total in total_costs([blocks, blocks])}["evaluate"] == 3


def test_csv_and_picture(complete, tmp_path):
    output = tmp_path / "page.html"
    write_campaign("two", CAMPAIGN, complete, output)
    rows = list(csv.DictReader(output.with_suffix(".csv").open()))
    assert [(row["method"], row["student"]) for row in rows] == [
        (method, student) for student in ("wrn161", "wrn162") for method in CONTENT["methods"]
    ]
    by_cell = {(row["method"], row["student"]): row for row in rows}
    for cell, values in ACCURACIES.items():
        assert float(by_cell[cell]["acc1"]) == pytest.approx(fmean(values))
        assert by_cell[cell]["file"].startswith("campaigns/two/")
    left = by_cell["real", "wrn162"]
    assert (left["state"], left["reason"], left["acc1"]) == ("excluded", "one is enough", "")
    assert by_cell["dafl", "wrn162"]["exceeds_noise"] == "false"
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert picture.width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.csv", "page.html", "page.png"]


def test_the_page_loads_nothing_and_depends_on_its_content_alone(complete, tmp_path):
    pages = []
    for name in ("a", "b"):
        write_campaign("two", CAMPAIGN, complete, tmp_path / name / "page.html")
        pages.append((tmp_path / name / "page.html").read_bytes())
    assert pages[0] == pages[1]
    text = re.sub(r"base64,[^\"]+", "", pages[0].decode())
    assert str(tmp_path) not in text
    assert str(complete) not in text
    assert not re.search(r"https?:|@import|url\(|fetch\(|<link", text)
    sources = [value for tag, key, value in Tables(pages[0].decode()).attributes if key in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")


def test_links_lead_to_the_comparisons_that_are_there(tmp_path):
    results = make_all(tmp_path)
    page = results / "campaigns" / "two" / "compare" / "cifar10_wrn402_wrn161.html"
    page.parent.mkdir()
    page.write_text("comparison")
    result = results / "campaigns" / "two" / "cmi" / "cifar10_wrn402_wrn162.html"
    result.write_text("result")
    for output in (results / "campaigns" / "two.html", tmp_path / "else where" / "x.html"):
        write_campaign("two", CAMPAIGN, results, output)
        text = output.read_text()
        links = [unquote(value) for tag, key, value in Tables(text).attributes if key == "href"]
        views = text.count('class="view"')
        assert Counter((output.parent / link).resolve() for link in links) == {page: views, result: views}
        assert views == 7  # one a figure; nothing was metered
        assert "A figure leads to its result" in text


def test_what_is_missing_is_shown(tmp_path):
    results = make_all(tmp_path, left_out=[("cmi", "wrn162"), ("dafl", "wrn162"), ("scratch", "wrn162")])
    make(tmp_path, "dafl", [80.0, 81.0], student="wrn162", folder="campaigns/two")  # of two seeds, not three
    (results / "campaigns/two/scratch/cifar10_wrn162.json").write_text("{}")
    output = tmp_path / "status.html"
    gathered = write_campaign("two", CAMPAIGN, results, output)
    assert gathered.done == 4
    assert {place.file.as_posix(): place.reason for place in gathered.missing} == {
        "campaigns/two/cmi/cifar10_wrn402_wrn162.json": "",
        "campaigns/two/dafl/cifar10_wrn402_wrn162.json": (
            "campaigns/two/dafl/cifar10_wrn402_wrn162.json: of the seeds 0, 1; make it again."
        ),
        "campaigns/two/scratch/cifar10_wrn162.json": next(
            place.reason for place in gathered.missing if place.cell.method == "scratch"
        ),
    }
    assert any("not a result file" in place.reason for place in gathered.missing)
    text = output.read_text()
    assert "4 of 7" in text
    assert "3 results are missing" in text
    _, *body = Tables(text).tables[0]
    assert {row[0].split()[0]: row[2] for row in body} == {
        "dafl": "missing ", "cmi": "missing ", "real": "– ", "scratch": "missing ",
    }  # fmt: skip
    assert body[1][3] == "89.00 "  # of the one column that has results
    with pytest.raises(UserError, match="3 results are missing, and Snakemake would take this page for the finished one"):
        write_campaign("two", CAMPAIGN, results, results / "campaigns" / "two.html")
    assert not (results / "campaigns" / "two.html").exists()


def test_nothing_at_all_is_a_page_too(tmp_path):
    (tmp_path / "results").mkdir()
    gathered = write_campaign("two", CAMPAIGN, tmp_path / "results", tmp_path / "page.html")
    assert (gathered.done, len(gathered.missing), gathered.totals) == (0, 7, [])
    assert "0 of 7" in (tmp_path / "page.html").read_text()


def test_without_predictions_the_noise_is_that_of_the_test_split(complete, tmp_path):
    moved = tmp_path / "moved"
    for method, student in ACCURACIES:
        name = f"cifar10_{student}.json" if method == "scratch" else f"cifar10_wrn402_{student}.json"
        path = moved / "campaigns" / "two" / method / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((complete / "campaigns" / "two" / method / name).read_bytes())
    gathered = gather("two", CAMPAIGN, moved)
    rows = {place.cell.method: place.row for place in gathered.columns[1].places if place.row}
    assert (rows["dafl"].noise, rows["dafl"].exceeds_noise) == ("binomial", False)
    assert {group.images for group in gathered.groups} == {IMAGES}


def test_a_plain_result_of_the_same_seeds_counts(tmp_path):
    make(tmp_path, "dafl", ACCURACIES["dafl", "wrn161"])
    make(tmp_path, "cmi", [88.0])
    gathered = gather("two", CAMPAIGN, tmp_path / "results")
    assert [place.file for place in gathered.places if place.state == "done"] == [Path("dafl/cifar10_wrn402_wrn161.json")]


def test_teachers_with_other_weights_are_told(tmp_path):
    make(tmp_path, "dafl", [70.0] * 3, folder="campaigns/two")
    path = make(tmp_path, "cmi", [80.0] * 3, folder="campaigns/two")
    content = json.loads(path.read_text())
    content["provenance"]["artefacts"]["teacher"] = "u"
    path.write_text(json.dumps(content))
    gathered = gather("two", CAMPAIGN, tmp_path / "results")
    assert "teachers with other weights" in gathered.columns[0].note
    assert {place.cell.method for place in gathered.columns[0].places if place.row} == {"dafl", "cmi"}


def test_a_student_from_scratch_alone_in_its_column(tmp_path):
    make(tmp_path, "scratch", [91.0] * 3, folder="campaigns/two")
    gathered = gather("two", CAMPAIGN, tmp_path / "results")
    assert gathered.columns[0].row("scratch").acc1 == 91.0
    write_campaign("two", CAMPAIGN, tmp_path / "results", tmp_path / "page.html")


def test_command(complete, tmp_path):
    output = tmp_path / "two.html"
    words = ["campaign", json.dumps(CAMPAIGN.model_dump()), "--results", str(complete), "-o", str(output)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"{output}: 7 of 7 results\n")
    assert "89.00 ± 1.00" in output.read_text()
    with pytest.raises(UserError, match=r"name one that ends in \.html"):
        write_campaign("two", CAMPAIGN, complete, tmp_path / "x.csv")
