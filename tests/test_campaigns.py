import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from dfkd.campaigns import Campaign, Cell, Exclusion, campaign_names, check_campaign, find_campaign, read_campaign, result_file
from dfkd.config import Config, load_config
from dfkd.errors import UserError
from dfkd.methods import ALIASES, METHODS
from dfkd.schema import render
from dfkd.targets import check_target

ROOT = Path(__file__).resolve().parents[1]
CONFIG = load_config(ROOT / "config")
SCHEMA = json.loads(render("campaign"))
SMALL = {"title": "Small", "methods": ["dda", "scratch"], "datasets": ["digits"], "pairs": ["wrn162_wrn161"]}


def campaign(**changes):
    return check_campaign({key: value for key, value in (SMALL | changes).items() if value is not None}, "mine.yaml", CONFIG)


def test_cells_are_methods_by_data_set_and_pair():
    both = campaign(datasets=["digits", "mnist"], pairs=["wrn162_wrn161", "lenet5_lenet5half"])
    assert [cell.target for cell in both.cells()] == [
        "digits_wrn162_wrn161", "digits_wrn161", "digits_lenet5_lenet5half", "digits_lenet5half",
        "mnist_wrn162_wrn161", "mnist_wrn161", "mnist_lenet5_lenet5half", "mnist_lenet5half",
    ]  # fmt: skip
    assert [cell.method for cell in both.cells()] == ["dda", "scratch"] * 4
    product = campaign(pairs=None, teachers=["wrn162", "vgg8"], students=["wrn161", "lenet5"])
    assert [column[1:] for column in product.columns()] == [
        ("wrn162", "wrn161"), ("wrn162", "lenet5"), ("vgg8", "wrn161"), ("vgg8", "lenet5"),
    ]  # fmt: skip
    cell = Cell("scratch", "digits", "wrn162", "wrn161")
    assert result_file("mine", cell) == "results/campaigns/mine/scratch/digits_wrn161.json"
    assert result_file("mine", Cell("dda", *cell.pair.split("_"), "x")) == "results/campaigns/mine/dda/wrn162_wrn161_x.json"


def test_seeds_are_a_list_a_number_or_those_of_the_config():
    assert campaign(seeds=[4, 2]).own_seeds == [4, 2]
    assert campaign(seeds=3).own_seeds == [0, 1, 2]
    assert campaign().own_seeds == CONFIG.seeds == [0]
    assert check_campaign(SMALL, "mine.yaml", Config(seeds=[7, 8], datasets=CONFIG.datasets)).own_seeds == [7, 8]


def test_exclusions_leave_out_what_fits_all_that_they_name():
    left = campaign(
        methods=["dda", "csd", "scratch"],
        pairs=["wrn162_wrn161", "wrn162_lenet5"],
        exclude=[{"method": "csd", "pair": "wrn162_lenet5", "reason": "no feature map"}, {"method": "scratch"}],
    )
    assert [(cell.method, cell.student) for cell in left.cells()] == [("dda", "wrn161"), ("csd", "wrn161"), ("dda", "lenet5")]
    assert left.exclusion(Cell("csd", "digits", "wrn162", "lenet5")).reason == "no feature map"
    assert left.exclusion(Cell("csd", "digits", "wrn162", "wrn161")) is None
    assert not Exclusion(dataset="mnist").fits(Cell("dda", "digits", "a", "b"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metods": ["dda"]}, "unknown key 'metods'; the nearest known: methods"),
        ({"exclude": [{"methd": "dda"}]}, "unknown key 'exclude.0.methd'; the nearest known: method"),
        ({"methods": ["dad"]}, "unknown method 'dad'; the nearest known: dfad, dda"),
        ({"methods": ["scrath"]}, "unknown method 'scrath'; the nearest known: scratch"),
        ({"datasets": ["digit"]}, "unknown data set 'digit'; the nearest known: digits"),
        ({"pairs": ["wrn162_wrn16"]}, "unknown model 'wrn16'"),
        ({"pairs": ["wrn40_2_wrn161"]}, "pairs.0: a pair is teacher_student, and models have no '_'"),
        ({"teachers": ["wrn162"]}, "give either pairs, or both teachers and students"),
        ({"pairs": None}, "give either pairs, or both teachers and students"),
        ({"pairs": None, "teachers": ["wrn162"]}, "give either pairs, or both teachers and students"),
        ({"methods": []}, "methods: List should have at least 1 item"),
        ({"methods": ["dda", "dda"]}, "the methods must differ from each other"),
        ({"seeds": 0}, "seeds: at least one seed is needed"),
        ({"seeds": True}, "seeds: "),
        ({"seeds": [1, 1]}, "the seeds must differ from each other"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"title": None}, "title: "),
        ({"exclude": [{}]}, "an exclusion must name a method, a dataset or a pair"),
        ({"exclude": [{"method": "csd", "dataset": "digits"}]}, "the exclusion of csd, digits leaves out nothing"),
        ({"exclude": [{"dataset": "digits"}]}, "everything is excluded"),
    ],
)
def test_a_wrong_campaign_ends_in_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=r"^mine\.yaml: ") as caught:
        campaign(**changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_campaigns():
    assert campaign_names(ROOT / "config") == ["cifar10", "cifar100", "digits"]
    every = find_campaign("digits", ROOT / "config", CONFIG)
    own = [name for name, method in METHODS.items() if name not in ALIASES and (not method.transfer or name == "kd")]
    assert every.methods == [*own, "scratch"]
    for name in ("cifar10", "cifar100"):
        papers = find_campaign(name, ROOT / "config", CONFIG)
        data_free = [method for method in papers.methods if method not in ("kd", "scratch")]
        assert (len(data_free), len(papers.columns()), papers.datasets) == (12, 5, [name])
        assert len(papers.cells()) * len(papers.own_seeds) == 14 * 5 * 3


def test_the_schema_is_the_one_of_the_types_and_fits_the_shipped_files():
    assert (ROOT / "workflow" / "schemas" / "campaign.schema.json").read_text(encoding="utf-8") == render("campaign")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for path in (ROOT / "config" / "campaigns").glob("*.yaml"):
        assert "schemas/campaign.schema.json" in path.read_text().splitlines()[0]
        jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)
    jsonschema.validate(SMALL | {"seeds": [0, 4]}, SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 0},
        {"seeds": []},
        {"methods": []},
        {"pairs": ["a_b_c"]},
        {"exclude": [{"methd": "dda"}]},
        {"x": 1},
        {"title": ""},
    ],
)
def test_the_schema_refuses_what_the_types_refuse(changes):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(SMALL | changes, SCHEMA)


def test_the_readme_explains_every_key():
    text = (ROOT / "config" / "README.md").read_text(encoding="utf-8").partition("## campaigns/")[2]
    for name in Campaign.model_fields:
        assert f"\n| `{name}` |" in text, name
    (row,) = (line for line in text.splitlines() if line.startswith("| `exclude` |"))
    assert [name for name in Exclusion.model_fields if f"`{name}`" not in row] == []


def test_targets_of_campaigns_are_checked():
    folder = ROOT / "config"
    for target in ("digits.html", "digits.csv", "digits.png", "digits/dda/digits_wrn162_wrn161.json", "digits/compare/x.html"):
        check_target(f"results/campaigns/{target}", CONFIG, folder)
    mistakes = {
        "digit.html": "unknown campaign 'digit'; the nearest known: digits",
        "digits.json": "a campaign is results/campaigns/digits.html, .csv or .png",
        "digits/dda/digits_wrn162_wrn162.json": "not a result of the campaign digits; the nearest known: results/",
    }
    for target, sentence in mistakes.items():
        with pytest.raises(UserError, match=f"^results/campaigns/{target}: ") as caught:
            check_target(f"results/campaigns/{target}", CONFIG, folder)
        assert sentence in str(caught.value)


def test_a_campaign_is_given_by_name_file_or_content(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert read_campaign(str(path), "page", ROOT / "config") == ("mine", campaign())
    assert read_campaign("digits", "page", ROOT / "config")[0] == "digits"
    content = json.dumps(SMALL | {"seeds": [0], "datasets": ["unseen"]})
    name, found = read_campaign(content, "page", tmp_path / "absent")
    assert (name, found.datasets) == ("page", ["unseen"])
    for text, sentence in {
        json.dumps(SMALL): "campaign page: seeds: missing",
        "{title": "campaign: not valid JSON",
        "absent.yaml": "absent.yaml: no such file",
        "digit": "unknown campaign 'digit'",
    }.items():
        with pytest.raises(UserError) as caught:
            read_campaign(text, "page", ROOT / "config")
        assert sentence in str(caught.value)


def test_without_a_campaign_the_sentence_says_where_to_write_one(tmp_path):
    with pytest.raises(UserError, match=r"unknown campaign 'x'; write .*campaigns/x\.yaml"):
        find_campaign("x", tmp_path, CONFIG)


def test_reading_campaigns_imports_no_torch():
    code = "import sys, dfkd.campaigns, dfkd.targets, dfkd.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
