"""Campaigns on the DAG: what they share, their seeds, what reruns, and what is refused; the stages are stubs."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from workflow_tools import ROOT, STUB, Workflow, jobs_in, plan

from dfkd.campaigns import find_campaign
from dfkd.config import load_config

SMALL = {
    "title": "Small",
    "methods": ["dda", "csd", "dafl", "real", "scratch"],
    "datasets": ["digits"],
    "pairs": ["wrn162_wrn161", "wrn162_lenet5"],
    "seeds": 2,
    "exclude": [{"method": "csd", "pair": "wrn162_lenet5"}],
}
PAGE = "results/campaigns/small.html"
JOBS = {
    "prepare": 1, "teacher": 1, "init_shard": 1, "init_bank": 1, "init_picture": 1, "augment": 1, "variations_picture": 1,
    "distill": 6, "distill_generator": 4, "distill_transfer": 4, "evaluate": 14, "run_pictures": 14, "campaign_result": 7,
    "scratch": 4, "evaluate_scratch": 4, "scratch_pictures": 4, "campaign_result_scratch": 2,
    "campaign_compare": 2, "campaign": 1,
}  # fmt: skip


def working_directory(folder, **campaigns):
    """A working directory with a copy of the checkout's config and these campaigns."""
    shutil.copytree(ROOT / "config", folder / "config")
    for name, content in campaigns.items():
        (folder / "config" / "campaigns" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return Workflow(folder, folder.parent / "bin", STUB)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    other = SMALL | {"methods": ["dda", "dafl"], "seeds": [0, 5], "exclude": []}
    workflow = working_directory(tmp_path_factory.mktemp("campaign") / "work", small=SMALL, other=other)
    assert workflow.run(PAGE) == JOBS
    return workflow


def calls(workflow, command):
    """The stages' command lines of one command, as words."""
    lines = (workflow.folder / "calls.txt").read_text().splitlines()
    return [line.split() for line in lines if line.split()[0] == command]


def options(words, name):
    return [value for option, value in itertools.pairwise(words) if option == name]


def test_every_run_is_made_once_and_gathered_with_the_seeds_of_the_campaign(finished):
    runs = [
        (*options(words, "--method"), *options(words, "--student"), *options(words, "--seed"))
        for words in calls(finished, "distill")
    ]
    wanted = {
        (method, student, seed)
        for method in ("dda", "csd", "dafl", "real")
        for student in ("wrn161", "lenet5")
        for seed in "01"
        if (method, student) != ("csd", "lenet5")
    }
    assert sorted(runs) == sorted(wanted)
    results = {options(words, "-o")[0]: words for words in calls(finished, "result")}
    assert len(results) == 9
    for path, words in results.items():
        assert path.startswith("results/campaigns/small/")
        assert [metrics.split("/")[-2] for metrics in options(words, "--metrics")] == ["seed0", "seed1"]
    assert not (finished.folder / "results" / "dda").exists()  # plain results are of the config's seeds
    compared = {options(words, "-o")[0]: words[1 : words.index("--runs")] for words in calls(finished, "compare")}
    assert {path: [name.split("/")[3] for name in names] for path, names in compared.items()} == {
        "results/campaigns/small/compare/digits_wrn162_wrn161.html": ["dda", "csd", "dafl", "real"],
        "results/campaigns/small/compare/digits_wrn162_lenet5.html": ["dda", "dafl", "real"],
    }


def test_the_page_is_made_of_the_campaign_as_it_stands(finished):
    ((words,),) = [calls(finished, "campaign")]
    line = next(line for line in (finished.folder / "calls.txt").read_text().splitlines() if line.startswith("campaign "))
    content = json.loads(line[line.index("{") : line.rindex("}") + 1])
    config = load_config(finished.folder / "config")
    assert content == find_campaign("small", finished.folder / "config", config).model_dump(mode="json")
    assert content["seeds"] == [0, 1]
    assert options(words, "-o") == [PAGE]


def test_a_second_invocation_and_what_says_the_same_run_nothing(finished):
    path = finished.folder / "config" / "campaigns" / "small.yaml"
    before = path.read_text()
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed((SMALL | {"seeds": [0, 1]}).items()))))
    done = finished("--cores", "1", PAGE)
    path.write_text(before)
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in done.stdout


def test_a_change_of_the_campaign_runs_what_is_new(finished):
    path = finished.folder / "config" / "campaigns" / "small.yaml"
    changes = {
        "title": ({"title": "Other"}, {"campaign": 1}),
        "a method less": ({"methods": ["dda", "csd", "dafl", "scratch"]}, {"campaign_compare": 2, "campaign": 1}),
        "no exclusion": (
            {"exclude": []},
            {"distill": 2, "evaluate": 2, "run_pictures": 2, "campaign_result": 1, "campaign_compare": 1, "campaign": 1},
        ),
        "a seed more": (
            {"seeds": 3},
            {
                "distill": 3, "distill_generator": 2, "distill_transfer": 2, "evaluate": 7, "run_pictures": 7,
                "campaign_result": 7, "scratch": 2, "evaluate_scratch": 2, "scratch_pictures": 2, "campaign_result_scratch": 2,
                "campaign_compare": 2, "campaign": 1,
            },
        ),
    }  # fmt: skip
    found = {}
    for name, (change, _) in changes.items():
        path.write_text(yaml.safe_dump(SMALL | change))
        done = finished(*plan(PAGE))
        assert done.returncode == 0, done.stdout
        found[name] = jobs_in(done.stdout)
    path.write_text(yaml.safe_dump(SMALL))
    assert found == {name: jobs for name, (_, jobs) in changes.items()}


def test_runs_are_shared_with_other_campaigns_and_plain_results(finished):
    other, plain, seeds = finished.batch(
        [
            plan("results/campaigns/other.html"),
            plan("results/csd/digits_wrn162_wrn161.json"),
            plan(PAGE, config=["seeds=[0,1,2]"]),  # the campaign has seeds of its own
        ]
    )
    assert jobs_in(other[1]) == {  # seed 0 is there, seed 5 is not
        "distill": 2, "distill_generator": 2, "evaluate": 4, "run_pictures": 4, "campaign_result": 4, "campaign_compare": 2,
        "campaign": 1,
    }  # fmt: skip
    assert jobs_in(plain[1]) == {"result": 1}
    assert "Nothing to be done" in seeds[1]


def test_a_setting_reruns_what_depends_on_it(finished):
    changes = {
        "methods={dafl: {overrides: {digits_wrn162_lenet5: {epochs: 2100}}}}": {
            "distill_generator": 2, "evaluate": 2, "run_pictures": 2, "campaign_result": 1, "campaign_compare": 1,
            "campaign": 1,
        },
        "init_bank={overrides: {mnist: {steps: 2100}}}": {},
    }  # fmt: skip
    answers = finished.batch([plan(PAGE, config=[change]) for change in changes])
    assert {change: jobs_in(output) for change, (_, output) in zip(changes, answers, strict=True)} == changes


def test_an_imported_teacher_and_a_campaign_without_seeds(finished):
    (finished.folder / "mine.pth").touch()
    content = {"title": "T", "methods": ["dafl"], "datasets": ["digits"], "pairs": ["vgg8_lenet5"]}
    path = finished.folder / "config" / "campaigns" / "third.yaml"
    path.write_text(yaml.safe_dump(content))
    target = "results/campaigns/third.html"
    one, three = finished.batch(
        [
            plan(target, config=["imported={digits_vgg8: mine.pth}"]),
            plan(target, config=["imported={digits_vgg8: mine.pth}", "seeds=[3,4,5]"]),
        ]
    )
    path.unlink()
    assert jobs_in(one[1]) == {
        "import_teacher": 1, "distill_generator": 1, "evaluate": 1, "run_pictures": 1, "campaign_result": 1,
        "campaign_compare": 1, "campaign": 1,
    }  # fmt: skip
    assert jobs_in(three[1])["distill_generator"] == 3
    assert "seed 5" in three[1]


def test_mistakes_end_in_one_sentence_and_status_2(finished):
    folder = finished.folder / "config" / "campaigns"
    wrong = {"dad": SMALL | {"methods": ["dad"]}, "typo": SMALL | {"pair": []}}
    for name, content in wrong.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    mistakes = {
        "unknown campaign 'smal'; the nearest known: small": plan("results/campaigns/smal.html"),
        "campaigns/dad.yaml: unknown method 'dad'; the nearest known: dfad, dda": plan("results/campaigns/dad.html"),
        "campaigns/typo.yaml: unknown key 'pair'; the nearest known: pairs": plan("results/campaigns/typo.csv"),
        "a campaign is results/campaigns/small.html, .csv or .png": plan("results/campaigns/small.json"),
        "not a result of the campaign small": plan("results/campaigns/small/csd/digits_wrn162_lenet5.json"),
    }
    answers = finished.batch([*mistakes.values(), plan("results/campaigns/other.html")])
    for name in wrong:
        (folder / f"{name}.yaml").unlink()
    for (status, output), sentence in zip(answers, mistakes, strict=False):
        assert status == 2, output
        assert sentence in output.strip().splitlines()[-1]
        assert "Traceback" not in output
    assert answers[-1][0] == 0  # a faulty campaign is in nobody's way but its own


def test_a_plugin_method_can_be_in_a_campaign(tmp_path):
    content = {"title": "Mine", "methods": ["mine", "dafl"], "datasets": ["digits"], "pairs": ["wrn162_wrn161"], "seeds": 2}
    workflow = working_directory(tmp_path / "work", mine=content)
    (workflow.folder / "own.py").write_text(
        "from dfkd.methods import FixedSettings, Method, register_method\n"
        'register_method("mine", Method(FixedSettings, "own_method:Mine"))\n'
    )
    (workflow.folder / "own_method.py").write_text("import torch\n")
    with_it, without = workflow.batch(
        [plan("results/campaigns/mine.html", config=["plugins=[own.py]"]), plan("results/campaigns/mine.html")]
    )
    assert with_it[0] == 0, with_it[1]
    assert {name: jobs_in(with_it[1])[name] for name in ("distill", "distill_generator")} == {
        "distill": 2,
        "distill_generator": 2,
    }
    assert without[0] == 2
    assert "unknown method 'mine'" in without[1]


def test_a_campaign_of_500_jobs_is_planned_shared_and_complete(tmp_path):
    """What benchmarks/planning.py times with 10,000 jobs."""
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.planning import finish, make_campaign, plan\n"
        "folder = Path(sys.argv[1]); pairs = make_campaign(folder, 500)\n"
        "fresh = plan(folder); finish(folder); again = plan(folder)\n"
        "print(json.dumps([pairs, fresh.jobs, fresh.output, again.jobs, again.output]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pairs, jobs, output, jobs_again, output_again = json.loads(done.stdout.splitlines()[-1])
    counts = jobs_in(output)
    assert jobs >= 500
    assert sum(counts.values()) == jobs
    assert counts["evaluate"] == counts["run_pictures"] == 18 * 3 * pairs
    assert counts["campaign_compare"] == pairs
    assert counts["campaign"] == 1
    teachers = yaml.safe_load((tmp_path / "config/campaigns/planning.yaml").read_text())["pairs"]
    assert counts["teacher"] == counts["init_bank"] == counts["augment"] == len({pair.split("_")[0] for pair in teachers})
    assert (jobs_again, "Nothing to be done" in output_again) == (0, True)
    assert not re.search(r"Traceback|Error", output + output_again)
