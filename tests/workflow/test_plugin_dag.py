"""A plugin's names in targets, its way to the stages, and what runs again when its code changes; the stages are stubs."""

import pytest
from workflow_tools import STUB, Workflow, jobs_in, plan

PLUGIN = """
from dfkd.config import register_model, register_source
from dfkd.methods import FixedSettings, Method, register_method

register_method("mine", Method(FixedSettings, "mine_method:Mine"))
register_model("mynet", "mine_net:net")
register_source("npz", "mine_source:read")
"""
TARGETS = ("results/mine/toy_wrn162_mynet.json", "results/mine/toy_wrn162_wrn161.json")
RESULT = ("distill", "evaluate", "run_pictures", "run_bank_page", "result")
NOTES = 'import os\nfrom pathlib import Path\nPath("passed.txt").write_text(os.environ["DFKD_PLUGINS"])\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin") / "work"
    (folder / "config").mkdir(parents=True)
    (folder / "own").mkdir()
    (folder / "config/config.yaml").write_text(
        "plugins: [own/mine.py]\nevaluate: {overrides: {toy_wrn162_mynet: {ece_bins: 3}}}\n"
    )
    (folder / "config/datasets.yaml").write_text("toy: {source: 'npz:toy.npz', image_size: 16, channels: 1}\n")
    (folder / "toy.npz").write_text("images")
    (folder / "own/mine.py").write_text(PLUGIN)
    for name in ("method", "net", "source"):
        (folder / f"own/mine_{name}.py").write_text("import torch\n")
    workflow = Workflow(folder, folder.parent / "bin", STUB + NOTES)
    assert workflow.run(*TARGETS) == {"prepare": 1, "teacher": 1, "teacher_report": 1, **dict.fromkeys(RESULT, 2)}
    return workflow


def test_the_stages_are_given_the_plugins(finished):
    assert (finished.folder / "passed.txt").read_text() == str(finished.folder.resolve() / "own/mine.py")


def test_a_change_of_code_reruns_the_jobs_of_its_names(finished):
    everything = {"prepare": 1, "teacher": 1, "teacher_report": 1, **dict.fromkeys(RESULT, 2)}
    expected = {
        "own/mine_method.py": dict.fromkeys(RESULT, 2),
        "own/mine_net.py": dict.fromkeys(RESULT, 1),
        "own/mine_source.py": everything,
        "toy.npz": everything,
    }
    found = {}
    for name in expected:
        before = (finished.folder / name).read_text()
        (finished.folder / name).write_text(before + "\n")
        done = finished(*plan(*TARGETS))
        found[name] = jobs_in(done.stdout)
        assert done.returncode == 0, done.stdout
        (finished.folder / name).write_text(before)
    assert found == expected


def test_what_is_wrong_with_a_plugin_is_told_in_a_sentence(finished):
    calls = [plan(TARGETS[0], config=["plugins=[own/absent.py]"]), plan("results/mini/toy_wrn162_mynet.json")]
    for (status, output), told in zip(
        finished.batch(calls),
        ("plugin own/absent.py: no such .py file", "unknown method 'mini'; the nearest known: mine"),
        strict=True,
    ):
        assert status == 2
        assert told in output
        assert "Traceback" not in output
