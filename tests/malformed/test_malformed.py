"""Whatever is wrong with its input, a command ends in one sentence and status 2, and leaves nothing behind.

Each case runs in a process of its own, forked so that the libraries are there: a crash or an endless loop is seen as one.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from random import Random

import pytest
import torch
from cases import draw
from world import ROOT, build, empty, noise, text, truncate

from dfkd.checkpoint import Checkpoint
from dfkd.config import load_config
from dfkd.errors import UserError
from dfkd.targets import check_target

CASES = draw(200)
SECONDS = 60  # far more than any case takes


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_data, tiny_teacher, reference):
    folder = tmp_path_factory.mktemp("world") / "whole"
    build(folder, tiny_data, tiny_teacher, reference)
    return folder


def command(folder: Path, words: list[str], answer) -> None:
    """`dfkd WORDS` in the folder; sends status and what was printed as errors."""
    os.setsid()
    signal.alarm(SECONDS)
    os.chdir(folder)
    errors = io.StringIO()
    sys.argv = ["dfkd", *words]
    status: object = 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        from dfkd.cli import main

        try:
            main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
    answer.send((status, errors.getvalue()))
    answer.close()
    os._exit(0)


def run(folder: Path, words: list[str]) -> tuple[object, str]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=command, args=(folder, words, sender))
    child.start()
    sender.close()
    try:
        status, errors = receiver.recv()
    except EOFError:
        status, errors = "no answer", ""
    child.join()
    return (status, errors) if child.exitcode == 0 else (f"ended by {child.exitcode}", errors)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_spoilt_input_ends_in_one_sentence(case, world, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(world, folder)
    case.damage(folder / case.file, case.random)
    before = files(folder)
    status, errors = run(folder, case.words)
    sentences = [line for line in errors.splitlines() if line.startswith("dfkd: ")]
    assert status == 2, f"{case}\nstatus {status}\n{errors}"
    assert len(sentences) == 1, errors
    assert sentences[0] == errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert len(sentences[0]) < 1000
    left = files(folder) - before
    assert not {name for name in left if not name.startswith("state/")}, left


def test_the_world_itself_is_accepted(world, tmp_path):
    """Without damage every command of the cases ends well: the refusals above are refusals of the damage."""
    folder = tmp_path / "copy"
    shutil.copytree(world, folder)
    commands = {
        tuple(case.words)
        for case in CASES
        if case.words[0] in ("bank", "plot", "show", "compare", "settings", "evaluate", "result", "prepare")
    }
    for words in sorted(commands):
        status, errors = run(folder, list(words))
        assert status == 0, (words, errors)


@pytest.mark.parametrize("damage", [truncate, empty, noise, text], ids=lambda damage: damage.__name__)
def test_a_spoilt_checkpoint_is_begun_anew(damage, tmp_path, caplog):
    checkpoint = Checkpoint(tmp_path / "state", {"stage": "test"})
    checkpoint.save({"step": 3, "weights": torch.arange(4.0)})
    damage(tmp_path / "state" / "state.pt", Random(damage.__name__))
    assert Checkpoint(tmp_path / "state", {"stage": "test"}).load() is None
    assert "starting anew" in caplog.text


@pytest.mark.parametrize("content", [[], {}, {"state": 3, "random": {}}, {"state": {}, "random": {"python": []}}], ids=str)
def test_a_checkpoint_of_another_form_is_begun_anew(content, tmp_path, caplog):
    checkpoint = Checkpoint(tmp_path / "state", {"stage": "test"})
    torch.save(content, tmp_path / "state" / "state.pt")
    assert checkpoint.load() is None
    assert "starting anew" in caplog.text


def test_any_target_is_understood_or_refused():
    config = load_config(ROOT / "config")
    words = ["cifar10", "wrn402", "wrn161", "digits", "dda", "seed0", "..", "", "~", "%2e", "é", "\n", "WRN-40-2", "a" * 300]
    random, refused = Random(0), []
    for _ in range(1000):
        names = random.choice("_-. ").join(random.choices(words, k=random.randrange(1, 5)))
        folder = random.choice(["results", "results/dda", "results/dfaf", "results/scratch", "results/compare", "data", "x"])
        target = f"{folder}/{names}{random.choice(['.json', '.h5', '', '.html'])}"
        try:
            check_target(target, config)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not [sentence for sentence in refused if "\n" in sentence or len(sentence) > 3000]
