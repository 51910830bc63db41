"""docs/extending.md as it is written: its files in an empty folder, its commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd.bank.reader import BankReader
from dfkd.datasets.prepared import read_info, read_split
from dfkd.files import read_json
from dfkd.models.weights import load_state, read_card

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"`((?:plugins|config)/[\w./]+)`[^`\n]*:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL)

# All commands in one process: importing torch is most of what each takes.
DRIVER = """
import json, sys
from dfkd.cli import main

for words in json.load(sys.stdin):
    sys.argv = words
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def python(*words, folder, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("DFKD_PLUGINS", None)
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's folder after its commands."""
    folder = tmp_path_factory.mktemp("extending")
    for name, content in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    commands = [shlex.split(line) for line in re.findall(r"^    ((?:python|dfkd) .*)$", PAGE, re.MULTILINE)]
    assert [words[0] for words in commands] == ["python", "dfkd", "dfkd", "dfkd", "dfkd"]
    done = python(*commands[0][1:], folder=folder)
    assert done.returncode == 0, done.stderr
    done = python("-c", DRIVER, folder=folder, input=json.dumps(commands[1:]))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_page_shows_every_file_that_it_lists():
    listed = re.findall(r"^    ((?:config|plugins)/\S+)  ", PAGE, re.MULTILINE)
    assert {name for name, _ in FILES} == {*listed, "plugins/make_stripes.py"} - {"plugins/stripes.npz"}


def test_the_data_set_of_the_page(folder):
    info = read_info(folder / "data/stripes.h5")
    assert (info.classes, info.image_size, info.channels) == (["horizontal", "vertical"], 8, 1)
    assert [len(read_split(folder / "data/stripes.h5", split)[0]) for split in ("train", "test")] == [120, 40]


def test_the_model_of_the_page_learns_under_its_own_names(folder):
    card = read_card(folder / "teacher/weights.safetensors")
    assert card.architecture == "mynet"
    assert card.metrics["acc1"] > 90
    assert {"0.weight", "1.running_mean", "9.weight", "11.bias"} < set(load_state(folder / "teacher/weights.safetensors"))


def test_the_method_of_the_page_distils(folder):
    card = read_card(folder / "run/student.safetensors")
    assert (card.architecture, card.stage) == ("wrn101", "distill blend")
    assert (card.settings["steps"], card.settings["tv"]) == (20, 0.1)
    header, *rows = (folder / "run/history.csv").read_text().splitlines()
    assert {"loss", "agreement", "g_loss", "g_oh", "g_tv", "acc1"} < set(header.split(","))
    assert [float(row.split(",")[header.split(",").index("g_oh")]) < 0.1 for row in rows] == [True, True]
    cost = read_json(folder / "run/cost.json")
    assert (cost["images"], cost["optimiser_steps"]) == (2 * 2 + 2 * 5 * 16, 2 * 20 + 2 * 5)
    assert len(BankReader(folder / "run/bank.lmdb")) == 256
    assert read_json(folder / "run/metrics.json")["student"]["name"] == "wrn101"


def test_the_files_that_register_import_no_torch(folder):
    code = (
        "import sys; from dfkd.config import load_config; load_config(); print('mine' in sys.modules, 'torch' in sys.modules)"
    )
    assert python("-c", code, folder=folder).stdout == "True False\n"
