"""Campaigns on the DAG: what they share, their seeds, what reruns, and what is refused. No stage runs."""

import itertools
import json
import re
import shlex
import shutil
from typing import NamedTuple

import pytest
import yaml
from workflow_tools import ROOT, STUB, Workflow, jobs_in, plan

from dfkd.campaigns import find_campaign
from dfkd.config import load_config
from dfkd.methods import ALIASES, METHODS

SMALL = {
    "title": "Small",
    "methods": ["dda", "csd", "dafl", "real", "scratch"],
    "datasets": ["digits"],
    "pairs": ["wrn162_wrn161", "wrn162_lenet5"],
    "seeds": 2,
    "exclude": [{"method": "csd", "pair": "wrn162_lenet5"}],
}
CAMPAIGNS = {
    "small": SMALL,
    "other": SMALL | {"methods": ["dda", "dafl"], "seeds": [0, 5], "exclude": []},
    "third": {"title": "T", "methods": ["dafl"], "datasets": ["digits"], "pairs": ["vgg8_lenet5"]},
    "own": SMALL | {"methods": ["mine", "dafl"], "exclude": []},
    "dad": SMALL | {"methods": ["dad"], "exclude": []},
    "typo": SMALL | {"pair": []},
}
PLUGIN = """
from dfkd.methods import FixedSettings, Method, register_method

register_method("mine", Method(FixedSettings, "own_method:Mine"))
"""
PAGE, OTHER, THIRD, OWN = (f"results/campaigns/{name}.html" for name in ("small", "other", "third", "own"))
JOBS = {
    "prepare": 1, "teacher": 1, "teacher_report": 1, "init_shard": 1, "init_bank": 1, "init_page": 1, "init_curves": 1,
    "augment": 1, "variations_page": 1, "variations_curves": 1, "distill": 6, "distill_generator": 4, "distill_transfer": 4,
    "evaluate": 14, "run_pictures": 14, "run_bank_page": 14, "campaign_result": 7, "scratch": 4, "evaluate_scratch": 4,
    "scratch_pictures": 4, "campaign_result_scratch": 2, "campaign_compare": 2, "campaign": 1,
}  # fmt: skip
MISTAKES = {
    "results/campaigns/smal.html": "unknown campaign 'smal'; the nearest known: small",
    "results/campaigns/dad.html": "campaigns/dad.yaml: unknown method 'dad'; the nearest known: dfad, dda",
    "results/campaigns/typo.csv": "campaigns/typo.yaml: unknown key 'pair'; the nearest known: pairs",
    "results/campaigns/small.json": "a campaign is results/campaigns/small.html, .csv or .png",
    "results/campaigns/small/csd/digits_wrn162_lenet5.json": "not a result of the campaign small",
}


def of_runs(distill, count, results):
    """The jobs that follow these, in `count` runs of `results` results."""
    below = dict.fromkeys(["evaluate", "run_pictures", "run_bank_page"], count)
    return distill | below | {"campaign_result": results}


# What the file of the campaign says otherwise, and the jobs that run then.
CHANGES = {
    "the same in other words": (dict(reversed((SMALL | {"seeds": [0, 1]}).items())), {}),
    "another title": (SMALL | {"title": "Other"}, {"campaign": 1}),
    "a method less": (
        SMALL | {"methods": ["dda", "csd", "dafl", "scratch"]},
        {"campaign_compare": 2, "campaign": 1},
    ),
    "no exclusion": (SMALL | {"exclude": []}, of_runs({"distill": 2}, 2, 1) | {"campaign_compare": 1, "campaign": 1}),
    "a seed more": (
        SMALL | {"seeds": 3},
        of_runs({"distill": 3, "distill_generator": 2, "distill_transfer": 2}, 7, 7)
        | dict.fromkeys(["scratch", "evaluate_scratch", "scratch_pictures", "campaign_result_scratch", "campaign_compare"], 2)
        | {"campaign": 1},
    ),
}
SETTINGS = {
    "methods={dafl: {overrides: {digits_wrn162_lenet5: {epochs: 2100}}}}": (
        of_runs({"distill_generator": 2}, 2, 1) | {"campaign_compare": 1, "campaign": 1}
    ),
    "init_bank={overrides: {mnist: {steps: 2100}}}": {},
}


class Campaigns(NamedTuple):
    """A working directory in which the campaign `small` is complete, as Snakemake sees it."""

    workflow: Workflow
    first: str  # the plan of `small` from nothing

    def plans(self, *words):
        """Status and output of each plan."""
        return self.workflow.batch(words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign") / "work"
    shutil.copytree(ROOT / "config", folder / "config")
    write_campaigns(folder, CAMPAIGNS)
    (folder / "mine.pth").touch()
    (folder / "own.py").write_text(PLUGIN)
    (folder / "own_method.py").write_text("import torch\n")
    workflow = Workflow(folder, folder.parent / "bin", STUB)
    ((status, first),) = workflow.batch([plan(PAGE)])
    assert status == 0, first
    program = ("-m", "benchmarks.plan_child", str(folder / "answer.json"), "--finish")
    done = workflow("--cores", "1", "--", PAGE, program=program)
    assert json.loads((folder / "answer.json").read_text())["status"] == 0, done.stdout
    return Campaigns(workflow, first)


def write_campaigns(folder, contents):
    for name, content in contents.items():
        (folder / "config" / "campaigns" / f"{name}.yaml").write_text(
            "# a comment\n" + yaml.safe_dump(content, sort_keys=False)
        )


def commands(output, name):
    """The command lines of one stage in a plan, as words."""
    lines = re.findall(r"^ *Shell command: (.*)$", output, re.MULTILINE)
    calls = [[word for word in shlex.split(line) if not word.startswith("DFKD_GPUS=")] for line in lines]
    found = [words[1:] for words in calls if words[1:2] == [name]]
    return [words[: words.index(">")] for words in found]


def options(words, name):
    return [value for option, value in itertools.pairwise(words) if option == name]


def test_every_run_is_made_once_and_gathered_with_the_seeds_of_the_campaign(finished):
    assert jobs_in(finished.first) == JOBS
    runs = [
        (*options(words, "--method"), *options(words, "--student"), *options(words, "--seed"))
        for words in commands(finished.first, "distill")
    ]
    wanted = {
        (method, student, seed)
        for method in ("dda", "csd", "dafl", "real")
        for student in ("wrn161", "lenet5")
        for seed in "01"
        if (method, student) != ("csd", "lenet5")
    }
    assert sorted(runs) == sorted(wanted)
    results = {options(words, "-o")[0]: words for words in commands(finished.first, "result")}
    assert len(results) == 9
    for path, words in results.items():
        assert path.startswith("results/campaigns/small/")
        assert options(words, "--page") == [path.replace(".json", ".html")]
        assert [metrics.split("/")[-2] for metrics in options(words, "--metrics")] == ["seed0", "seed1"]
    assert not (finished.workflow.folder / "results" / "dda").exists()  # plain results are of the config's seeds
    compared = {options(words, "-o")[0]: words[1 : words.index("--runs")] for words in commands(finished.first, "compare")}
    assert {path: [name.split("/")[3] for name in names] for path, names in compared.items()} == {
        "results/campaigns/small/compare/digits_wrn162_wrn161.html": ["dda", "csd", "dafl", "real"],
        "results/campaigns/small/compare/digits_wrn162_lenet5.html": ["dda", "dafl", "real"],
    }


def test_the_page_is_made_of_the_campaign_as_it_stands(finished):
    ((_, text, *words),) = commands(finished.first, "campaign")
    config = finished.workflow.folder / "config"
    assert json.loads(text) == find_campaign("small", config, load_config(config)).model_dump(mode="json")
    assert json.loads(text)["seeds"] == [0, 1]
    assert words == ["--results", "results", "-o", PAGE]


def test_a_change_of_the_campaign_runs_what_is_new(finished):
    original = finished.workflow.folder
    words = []
    for number, (content, _) in enumerate(CHANGES.values()):
        folder = original.parent / f"changed{number}"  # the same files, another campaign
        shutil.copytree(original / "config", folder / "config")
        write_campaigns(folder, {"small": content})
        for name in ("data", "results", ".snakemake"):
            (folder / name).symlink_to(original / name)
        words.append(["--directory", str(folder), *plan(PAGE)])
    answers = finished.plans(*words)
    assert [status for status, _ in answers] == [0] * len(CHANGES)
    assert {name: jobs_in(output) for name, (_, output) in zip(CHANGES, answers, strict=True)} == {
        name: jobs for name, (_, jobs) in CHANGES.items()
    }
    assert "Nothing to be done" in answers[0][1]


def test_what_is_shared_and_what_a_setting_reruns(finished):
    other, plain, seeds, *changed = finished.plans(
        plan(OTHER),
        plan("results/csd/digits_wrn162_wrn161.json"),
        plan(PAGE, config=["seeds=[0,1,2]"]),  # the campaign has seeds of its own
        *[plan(PAGE, config=[setting]) for setting in SETTINGS],
    )
    assert jobs_in(other[1]) == (  # seed 0 is there, seed 5 is not
        of_runs({"distill": 2, "distill_generator": 2}, 4, 4) | {"campaign_compare": 2, "campaign": 1}
    )
    assert jobs_in(plain[1]) == {"result": 1}
    assert "Nothing to be done" in seeds[1]
    assert {setting: jobs_in(output) for setting, (_, output) in zip(SETTINGS, changed, strict=True)} == SETTINGS


def test_imported_teachers_plugins_and_seeds_of_the_config(finished):
    imported = "imported={digits_vgg8: mine.pth}"
    one, three, plugin, without = finished.plans(
        plan(THIRD, config=[imported]),
        plan(THIRD, config=[imported, "seeds=[3,4,5]"]),
        plan(OWN, config=["plugins=[own.py]"]),
        plan(OWN),
    )
    assert jobs_in(one[1]) == (
        of_runs({"import_teacher": 1, "teacher_report": 1, "distill_generator": 1}, 1, 1)
        | {"campaign_compare": 1, "campaign": 1}
    )
    assert jobs_in(three[1])["distill_generator"] == 3
    assert "seed 5" in three[1]
    assert plugin[0] == 0, plugin[1]
    assert jobs_in(plugin[1])["distill"] == 4
    assert without[0] == 2
    assert "unknown method 'mine'" in without[1]


def test_mistakes_end_in_one_sentence_and_status_2(finished):
    answers = finished.plans(*map(plan, MISTAKES))
    for (status, output), sentence in zip(answers, MISTAKES.values(), strict=True):
        assert status == 2, output
        assert sentence in output.strip().splitlines()[-1]
        assert "Traceback" not in output


def test_the_campaign_of_the_benchmark_has_the_jobs_that_it_promises(finished, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.planning import TARGET, make_campaign

    assert make_campaign(tmp_path, 10_000) * len(set(METHODS) - set(ALIASES)) * 13 >= 9_000
    assert make_campaign(tmp_path, 1) == 1
    ((status, output),) = finished.plans(["--directory", str(tmp_path), *plan(TARGET)])
    assert status == 0, output
    counts, methods = jobs_in(output), len(set(METHODS) - set(ALIASES))
    runs = sum(counts[name] for name in ("distill", "distill_generator", "distill_transfer", "distill_two_stage"))
    assert runs == counts["evaluate"] == counts["run_pictures"] == counts["run_bank_page"] == 3 * methods
    assert (counts["campaign_result"], counts["campaign_compare"], counts["campaign"]) == (methods, 1, 1)
    assert counts["teacher"] == counts["init_bank"] == counts["augment"] == 1
