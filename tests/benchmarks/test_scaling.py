import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_benchmarks import TINY

from benchmarks import scaling, scaling_plot
from benchmarks.table import as_json
from dfkd.cli import app
from dfkd.cli_bank import bank_app

ACTIONS = ["write", "merge", "verify", "open", "load", "batch, resident", "batch, streamed"]


def test_a_bank_is_made_in_shards_measured_and_removed(tmp_path):
    found = scaling.bank_curve(600, tmp_path, scaling.growing, batches=5)
    assert list(found) == ACTIONS
    assert all(taken.seconds > 0 and taken.grown >= 0 for taken in found.values())
    assert list(tmp_path.glob("*.lmdb")) == []


def test_shards_of_several_portions_can_be_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "PORTION", 300)
    paths = [tmp_path / f"{index}.lmdb" for index in (1, 2)]
    for index, path in enumerate(paths, 1):
        scaling.write_shard(path, index, 1300)
    scaling.merge(paths, tmp_path / "all.lmdb")
    assert len(scaling.BankReader(tmp_path / "all.lmdb")) == 1300
    assert scaling.verify(tmp_path / "all.lmdb") > 0


def test_memory_of_an_action_is_that_of_a_process_of_its_own(tmp_path):
    scaling.write_shard(tmp_path / "bank.lmdb", 1, 6000)
    with scaling.children() as run:
        loaded, opened = (run(action, tmp_path / "bank.lmdb") for action in (scaling.load, scaling.open_bank))
    size = 3000 * 3072
    assert size <= loaded.grown < 20 * size
    assert opened.grown < loaded.grown


def test_shards_at_a_time_make_the_bank_of_one(tmp_path, monkeypatch):
    begun = []

    def stage(*words, threads=1):
        begun.append(words[:2])
        bank_app(list(words[1:]), standalone_mode=False) if words[0] == "bank" else app(list(words), standalone_mode=False)
        return SimpleNamespace(communicate=lambda: (b"", b""), returncode=0)

    monkeypatch.setattr(scaling, "stage", stage)
    options = replace(TINY, shard_teacher="wrn101", shard_batches=2, shard_images=4, shard_steps=1, shard_rounds=1)
    section = scaling.shard_section(options, tmp_path)
    assert [words[0] for words in begun] == ["init-bank", "bank", "init-bank", "init-bank", "bank"]
    assert section.title == "Init bank in shards, one thread each: wrn101, 2 batches of 4, 1 steps"
    assert len(section.samples["2 at a time"]) == 1


def test_ranks_are_those_of_one_job(tmp_path, monkeypatch):
    begun = []

    def stage(*words, threads=1):
        begun.append(words)
        return SimpleNamespace(communicate=lambda: (b"", b""), returncode=0)

    monkeypatch.setattr(scaling, "stage", stage)
    section = scaling.rank_section(replace(TINY, shard_rounds=1), tmp_path)
    assert [words[words.index("--ranks") + 1] for words in begun] == ["1", "2"]
    assert [row.name for row in section.rows] == ["1 rank", "2 ranks", "2 ranks / 1 rank"]


def test_two_ranks_are_held_against_one():
    rows = {row.name: row.value for row in scaling.rank_rows({"1 ranks": [9.0, 12.0, 10.0], "2 ranks": [5.0, 4.0, 6.0]})}
    assert rows == {"1 rank": 10, "2 ranks": 5, "2 ranks / 1 rank": 2}


def test_a_stage_that_fails_says_why():
    process = SimpleNamespace(communicate=lambda: (b"", b"dfkd: no such teacher."), returncode=2)
    with pytest.raises(RuntimeError, match="no such teacher"):
        scaling.finished([process])


def test_two_shards_are_held_against_one():
    samples = {"1 at a time": [9.0, 10.0, 30.0], "2 at a time": [5.0, 6.0, 4.0], "merge 1": [1.0], "merge 2": [2.0]}
    rows = {row.name: row.value for row in scaling.shard_rows(samples)}
    assert rows == {"1 shard": 10, "2 shards at the same time": 5, "2 shards / 1 shard": 2, "merge of 2 shards": 2}


def test_the_curves_of_the_picture_are_the_measured_ones(tmp_path):
    taken = {name: scaling.Taken(0.5, 3_000_000) for name in ACTIONS}
    section = scaling.bank_section({1000: taken, 10_000: {**taken, "load": scaling.Taken(2.0, 40_000_000)}})
    rows = {row.name: row for row in section.rows}
    assert (rows["batch, resident, 1,000 images"].value, rows["batch, resident, 1,000 images"].unit) == (500, "ms")
    assert rows["load, 10,000 images"].note == "5,000 images/s; grown by 40.0 MB"
    seconds, grown = scaling_plot.curves(section.samples)
    assert seconds["load"] == {1000: 0.5, 10_000: 2.0}
    assert grown["load"] == {1000: 3e6, 10_000: 4e7}
    (tmp_path / "scaling.json").write_text(json.dumps(as_json({}, [section])))
    pictures = [tmp_path / "one.png", tmp_path / "two.png"]
    for picture in pictures:
        scaling_plot.main(str(tmp_path / "scaling.json"), str(picture))
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
