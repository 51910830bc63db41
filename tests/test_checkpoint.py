import os
import random

import numpy as np
import pytest
import torch

from dfkd.checkpoint import Checkpoint, fingerprint
from dfkd.errors import UserError
from dfkd.files import atomic_path, file_sha256, read_json, write_json
from dfkd.runtime import derive_seed, seed_everything


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), atomic_path(tmp_path / "file" / "x.json"):
        pass


def test_json_round_trip_and_refusals(tmp_path):
    write_json(tmp_path / "x.json", {"ü": [1, 2.5, None]})
    assert read_json(tmp_path / "x.json") == {"ü": [1, 2.5, None]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "nan.json", {"x": float("nan")})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json: not valid JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")


def test_file_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_checkpoint_restores_tensors_and_random_state(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {"lr": 0.1})
    assert checkpoint.load() is None
    seed_everything(3)
    checkpoint.save({"step": 7, "model": {"w": torch.arange(3.0)}, "rows": [{"epoch": 1, "loss": 0.5}]})
    drawn = torch.rand(3), np.random.rand(), random.random()
    seed_everything(4)
    state = Checkpoint(tmp_path / "c", {"lr": 0.1}).load()
    assert state is not None
    assert state["step"] == 7
    assert state["rows"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    again = torch.rand(3), np.random.rand(), random.random()
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]


def test_checkpoint_of_other_settings_is_discarded_with_its_folder(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {"lr": 0.1})
    checkpoint.save({"step": 7})
    (checkpoint.folder / "bank.lmdb").write_text("x")
    other = Checkpoint(tmp_path / "c", {"lr": 0.2})
    assert other.load() is None
    assert not (other.folder / "bank.lmdb").exists()


def test_a_damaged_state_is_not_taken_for_whole(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {})
    checkpoint.save({"step": 7})
    path = checkpoint.folder / "state.pt"
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoint.load() is None


def test_a_state_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint = Checkpoint(tmp_path / "c", {})
    torch.save({"state": Evil(), "random": {}}, checkpoint.folder / "state.pt")
    assert checkpoint.load() is None
    assert not (tmp_path / "ran").exists()


def test_fingerprint_and_seeds_depend_on_every_part():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    seeds = {derive_seed(0, "init", 1), derive_seed(0, "init", 2), derive_seed(1, "init", 1), derive_seed(0, "in", "it", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
