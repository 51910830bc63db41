from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.cli_bank import bank_app
from dfkd.errors import UserError


def run(*words: object) -> str:
    result = CliRunner().invoke(bank_app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_info(banks):
    bank = banks.make()
    summary = json.loads(run("info", bank, "--json"))
    assert (summary["images"], summary["kind"], sum(summary["classes"].values())) == (20, "init", 20)
    text = run("info", bank)
    for words in (
        "20 of 3×4×4 in 4 blocks",
        "complete",
        "ab" * 32,
        "two",
        "bn",
        "lr 0.001, steps 3",
        "└── init-bank: init, 20 images",
    ):
        assert words in text


def test_ls(banks, tmp_path):
    banks.make("deep/a.lmdb")
    with BankWriter(tmp_path / "b.lmdb", banks.meta()) as writer:
        writer.append(banks.block(0))
    (tmp_path / "c.lmdb").write_text("nothing")
    rows = {
        row["path"].rsplit("/", 1)[1]: row for row in json.loads(run("ls", tmp_path / "deep", tmp_path / "b.lmdb", "--json"))
    }
    assert (rows["a.lmdb"]["status"], rows["a.lmdb"]["images"]) == ("complete", 20)
    assert (rows["b.lmdb"]["status"], rows["b.lmdb"]["images"]) == ("writing", 5)
    text = run("ls", tmp_path)
    assert "abababababab" in text
    assert "not an image bank" in " ".join(text.split())


def test_merge_verify_grid_and_export(banks, tmp_path):
    shards = [banks.shard(1, 2, range(2)), banks.shard(2, 2, range(2, 4))]
    assert "20 images in 4 blocks" in run("merge", shards[1], shards[0], "-o", tmp_path / "whole.lmdb")
    assert "every byte is as it was published" in run("verify", tmp_path / "whole.lmdb")
    assert "20 images" in run("export", tmp_path / "whole.lmdb", "-o", tmp_path / "images")
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 20
    assert len(BankReader(tmp_path / "whole.lmdb")) == 20


def test_verify_ends_with_an_error(banks):
    bank = banks.make()
    content = bytearray(bank.read_bytes())
    content[5000] ^= 4
    bank.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged or incomplete .*digest"):
        run("verify", bank)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("info", "absent.lmdb"), r"absent\.lmdb: no such bank"),
        (("verify", "absent.lmdb"), r"absent\.lmdb: no such bank"),
        (("merge", "absent.lmdb", "-o", "x.lmdb"), r"absent\.lmdb: no such shard"),
        (("ls", "absent"), "absent: no such file or folder"),
        (("grid", "absent.lmdb", "-o", "x.png", "--order", "beast"), "--order beast: the nearest known: best"),
        (("export", "absent.lmdb", "-o", "x", "--format", "hdf"), "--format hdf: the nearest known: hdf5"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        run(*words)
