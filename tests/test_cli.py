"""The command line: help, settings, and one sentence with status 2 for every mistake."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.config import STAGES, settings_of
from dfkd.errors import UserError
from dfkd.methods import METHODS, DDASettings

RUN = CliRunner()


def refusal(*words):
    result = RUN.invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "words",
    [
        ["prepare"],
        ["teacher", "train"],
        ["teacher", "import"],
        ["init-bank"],
        ["augment"],
        ["distill"],
        ["evaluate"],
        ["result"],
        ["plot", "curves"],
        ["deploy"],
        ["export"],
    ],
)
def test_every_command_explains_itself(words):
    result = RUN.invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "--output" in result.output


def test_help_and_plans_wait_for_no_heavy_library():
    code = "import sys, dfkd.cli, dfkd.targets, dfkd.progress, dfkd.evaluation.plots; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_help_of_a_stage_lists_its_settings():
    text = RUN.invoke(app, ["distill", "--help"], terminal_width=200).output
    for name in DDASettings.model_fields:
        assert name in text


@pytest.mark.parametrize("stage", [*sorted(STAGES), "distill"])
def test_settings_are_explained_and_resolved(stage):
    assert "precision = fast" in RUN.invoke(app, ["settings", stage]).output or stage == "evaluate"
    resolved = json.loads(RUN.invoke(app, ["settings", stage, "digits_wrn162_wrn161"]).output)
    assert resolved == settings_of(stage).model_validate(resolved).model_dump(mode="json")


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_every_method_are_explained_and_resolved(method):
    explained = RUN.invoke(app, ["settings", "distill", "--method", method]).output
    assert [line.split(" = ")[0] for line in explained.splitlines() if line[0] != " "] == list(
        METHODS[method].settings.model_fields
    )
    resolved = json.loads(RUN.invoke(app, ["settings", "distill", "cifar10_wrn402_wrn161", "--method", method]).output)
    assert resolved == METHODS[method].settings.model_validate(resolved).model_dump(mode="json")


def test_mistakes_are_sentences(tmp_path):
    out = ["-o", tmp_path / "x.safetensors"]
    assert "no such file" in refusal("init-bank", "--teacher", tmp_path / "absent.safetensors", *out)
    assert "unknown model 'wrn152'" not in refusal("settings", "distil")
    assert "the nearest known: distill" in refusal("settings", "distil")
    assert "unknown method 'daff'; the nearest known: dafl" in refusal("settings", "distill", "--method", "daff")
    train = ["teacher", "train", "--data", tmp_path / "d.h5", *out]
    assert "depth must be 6n+4" in refusal(*train, "--model", "wrn152")
    assert "unknown key 'epoch'; the nearest known: epochs" in refusal(*train, "--model", "wrn161", "--set", "epoch=3")
    assert "expected key=value" in refusal(*train, "--model", "wrn161", "--set", "epochs")
    assert "not valid JSON" in refusal(*train, "--model", "wrn161", "--settings", "{epochs")
    assert "no such file" in refusal(*train, "--model", "wrn161", "--settings", tmp_path / "absent.yaml")
    assert "expected i/n" in refusal("init-bank", "--teacher", "t", "--shard", "2", *out)
    assert "expected NAME=FILE" in refusal(
        "result",
        "--dataset",
        "d",
        "--teacher",
        "t",
        "--student",
        "s",
        "--metrics",
        "m",
        "--config-hash",
        "h",
        "--cost",
        "x",
        *out,
    )
    assert list(tmp_path.iterdir()) == []


def test_the_process_ends_with_status_2_and_one_line(tmp_path):
    words = [sys.executable, "-m", "dfkd.cli", "show", str(tmp_path / "absent.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dfkd: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
