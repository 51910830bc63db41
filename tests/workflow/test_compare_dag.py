import re

import pytest
from workflow_tools import ROOT, jobs_in, plan

from dfkd.config import check_config, load_config
from dfkd.errors import UserError
from dfkd.methods import ALIASES, METHODS
from dfkd.targets import check_target

PAGE = "results/compare/digits_wrn162_wrn161.html"
LIST = "results/compare/kd_digits_wrn162_wrn161.html"


def test_the_comparison_distils_every_method_once_and_shares_the_banks(workflow):
    few = plan(PAGE, config=["compare=[csd,dafl]", "seeds=[0,1,2]"])
    wrong = plan(PAGE, config=["compare=[dad]"])
    answers = workflow.batch([plan(PAGE), few, wrong, plan(PAGE.removesuffix("html") + "json"), plan(LIST)])
    assert [status for status, _ in answers] == [0, 0, 2, 2, 0], answers[0][1]
    jobs = jobs_in(answers[0][1])
    names = [name for name in METHODS if name not in ALIASES and not METHODS[name].transfer]
    generative = sum(METHODS[name].generator for name in names)
    assert jobs == {
        "prepare": 1, "teacher": 1, "teacher_report": 1, "init_shard": 1, "init_bank": 1, "init_page": 1, "init_curves": 1,
        "augment": 1, "variations_page": 1, "variations_curves": 1,
        "distill": len(names) - generative - 1, "distill_generator": generative, "distill_transfer": 1,
        "evaluate": len(names), "run_pictures": len(names), "run_bank_page": len(names), "result": len(names), "compare": 1,
    }  # fmt: skip
    assert sorted(re.findall(r"^Job \d+: Distil .* by (\S+), seed 0$", answers[0][1], re.MULTILINE)) == sorted(names)
    jobs = jobs_in(answers[1][1])
    assert {name: jobs[name] for name in ("init_bank", "distill", "distill_generator", "evaluate", "result", "compare")} == {
        "init_bank": 1, "distill": 3, "distill_generator": 3, "evaluate": 6, "result": 2, "compare": 1,
    }  # fmt: skip
    assert "augment" not in jobs
    assert "compare: unknown method 'dad'; the nearest known: dfad, dda" in answers[2][1]
    assert f"a comparison is {PAGE}, .csv or .png" in answers[3][1]
    names = [name for name, method in METHODS.items() if method.transfer and not method.equal_channels]
    jobs = jobs_in(answers[4][1])
    two = sum(bool(METHODS[name].first_stage) for name in names)
    distilled = {"distill_transfer": len(names) - two, "first_stage": two, "distill_two_stage": two}
    assert jobs.items() >= {**distilled, "result": len(names), "compare_list": 1, "teacher": 1}.items()
    assert not {"compare", "distill", "init_bank"} & set(jobs)
    assert sorted(re.findall(r"^Job \d+: Distil .* by (\S+), seed 0$", answers[4][1], re.MULTILINE)) == sorted(names)


def test_the_methods_of_the_config_keep_their_order():
    config = load_config(ROOT / "config")
    assert config.compare == [name for name in METHODS if name not in ALIASES and not METHODS[name].transfer]
    assert {"kd", "kd-vanilla", "kd-at", "kdrefine"} <= set(config.compared("kd"))
    assert "kd-svd" not in config.compared("kd")  # it takes few pairs
    assert check_config({"compare": ["real", "adi", "dda"]}, "here").compare == ["real", "adi", "dda"]


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (["dda", "dad"], "here: compare: unknown method 'dad'"),
        (["dda", "dda"], "the methods of compare must differ from each other"),
        ([], "here: compare: "),
        ("dda", "here: compare: "),
    ],
)
def test_a_wrong_list_of_methods_is_refused(methods, sentence):
    with pytest.raises(UserError, match=r"^here: ") as caught:
        check_config({"compare": methods}, "here")
    assert sentence in str(caught.value)


def test_lists_of_methods_have_names():
    config = check_config({"comparisons": {"mine": ["dda", "kd-at"]}}, "here")
    assert config.compared("mine") == ["dda", "kd-at"]
    assert "kd-at" in config.compared("kd")  # is there beside one's own
    assert check_config({"comparisons": {"kd": ["kd"]}}, "here").compared("kd") == ["kd"]
    mistakes = {
        "here: mine: unknown method 'kd-et'; the nearest known: kd-": {"comparisons": {"mine": ["kd-et"]}},
        "the methods of mine must differ from each other": {"comparisons": {"mine": ["kd", "kd"]}},
        "comparisons: 'digits' is a data set": {
            "comparisons": {"digits": ["kd"]},
            "datasets": {"digits": {"source": "sklearn:digits"}},
        },
        "comparisons.mine: List should have at least 1 item": {"comparisons": {"mine": []}},
        "String should match pattern": {"comparisons": {"my_own": ["kd"]}},
    }
    for sentence, values in mistakes.items():
        with pytest.raises(UserError) as caught:
            check_config(values, "here")
        assert sentence in str(caught.value)


def test_targets_of_comparisons_are_checked():
    config = load_config(ROOT / "config")
    for kind in ("html", "csv", "png"):
        check_target(f"results/compare/cifar10_wrn402_wrn161.{kind}", config)
        check_target(f"results/compare/kd_cifar10_wrn402_wrn161.{kind}", config)
    mistakes = {
        "results/compare/dk_cifar10_wrn402_wrn161.html": "unknown comparison 'dk'; the nearest known: kd",
        "results/compare/kd_cifar_wrn402_wrn161.html": "unknown data set 'cifar'; the nearest known: cifar10",
        "results/compare/kd_cifar10_wrn402.csv": "of a list: LIST_DATASET_TEACHER_STUDENT",
        "results/compare/cifar_wrn402_wrn161.html": "unknown data set 'cifar'; the nearest known: cifar10",
        "results/compare/cifar10_wrn402.csv": "results/compare/DATASET_TEACHER_STUDENT.html",
        "results/compare/cifar10_wrn40_2_wrn161.png": "did you mean results/compare/cifar10_wrn402_wrn161.png?",
        "results/compare/cifar10_wrn402_wrn161.json": "a comparison is results/compare/cifar10_wrn402_wrn161.html",
    }
    for target, sentence in mistakes.items():
        with pytest.raises(UserError) as caught:
            check_target(target, config)
        assert sentence in str(caught.value)
    assert "compare" not in METHODS  # its folder in results/ would be that of the comparisons
