"""The list of banks and runs, broken ones among them."""

import shutil
import subprocess
import sys

import numpy as np
import torch
from viewer_tree import (
    CHECKPOINT,
    INIT,
    REJECTED,
    RUN,
    RUNNING,
    VARIATIONS,
    client_of,
    deadly,
    unpack,
    write_rows_csv,
)

from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.inspection.viewer.library import Library
from dfkd.inspection.viewer.runs import gather_runs, read_state


def test_all_banks_with_what_they_are(ask, folder):
    listed = {bank["name"]: bank for bank in ask("library")["banks"]}
    assert set(listed) == {
        INIT, VARIATIONS, REJECTED, f"{RUN}/bank.lmdb", f"{CHECKPOINT}/bank.lmdb", "banks/odd/names.lmdb",
        "banks/odd/truncated.lmdb",
    }  # fmt: skip
    init = listed[INIT]
    assert (init["images"], init["kind"], init["state"], init["teacher"], init["shape"]) == (
        60,
        "init",
        "complete",
        "wrn101",
        [1, 8, 8],
    )
    assert (init["bytes"], init["measured"]) == ((folder.results / INIT).stat().st_size, False)
    assert (listed[f"{CHECKPOINT}/bank.lmdb"]["state"], listed[f"{CHECKPOINT}/bank.lmdb"]["images"]) == ("growing", 10)
    broken = listed["banks/odd/truncated.lmdb"]
    assert broken["state"] == "broken"
    assert broken["fault"].startswith("banks/odd/truncated.lmdb: truncated, 9000 of at least")


def test_thumbs_are_spread_over_the_bank(frame, folder):
    images = BankReader(folder.results / INIT).load().images
    assert np.array_equal(frame("thumbs", bank=INIT).pixels, images[::6])


def in_blocks(folder, name, blocks):
    """A published bank of blocks of two images."""
    path = folder.results / name
    with BankWriter(path.with_suffix(".work"), folder.meta, resume=False) as writer:
        for first in range(0, 2 * blocks, 2):
            writer.append_images(folder.run_images[first : first + 2], folder.run_labels[first : first + 2])
        writer.publish(path)
    return path


def test_a_bank_that_kills_its_reader_is_broken_and_the_others_are_listed(own_folder):
    in_blocks(own_folder, "banks/blocks.lmdb", 4)
    deadly(own_folder.results / "banks" / "blocks.lmdb")
    banks = Library(own_folder.results).find().banks
    fault = "its pages are damaged, reading them kills the reader; copy or make the bank again."
    assert banks["banks/blocks.lmdb"].fault == f"banks/blocks.lmdb: {fault}"
    assert [name for name, bank in banks.items() if bank.meta is None] == ["banks/blocks.lmdb", "banks/odd/truncated.lmdb"]


def test_a_bank_with_a_flipped_byte_is_told_when_it_is_opened_and_in_the_list_from_then_on(own_folder):
    name = "banks/blocks.lmdb"
    path = in_blocks(own_folder, name, 12)
    pixels = own_folder.run_images[11].numpy().tobytes()  # in block 5, which none of the ten thumbs is taken from
    path.write_bytes(path.read_bytes().replace(pixels, b"!" + pixels[1:]))
    with client_of(own_folder.results) as client:

        def state():
            return {bank["name"]: bank["state"] for bank in client.get("/api/library").json()["banks"]}[name]

        assert state() == "complete"
        refused = client.get("/api/page", params={"bank": name})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith(f"{name}: block 5 fails its checksum")
        assert state() == "broken"
        assert client.get("/api/page", params={"bank": VARIATIONS}).status_code == 200


def test_what_is_a_bank_and_its_family(ask, folder):
    bank = ask("bank", bank=VARIATIONS)
    stored = BankReader(folder.results / VARIATIONS).load()
    assert bank["counts"] == torch.bincount(stored.labels, minlength=3).tolist()
    assert bank["ranges"]["cosine"]["mean"] == np.mean(stored.scores["cosine"].numpy(), dtype=np.float64)
    assert (bank["parent"], bank["children"]) == (INIT, [])
    assert ask("bank", bank=INIT)["children"] == [
        {"name": REJECTED, "kind": "rejected"}, {"name": VARIATIONS, "kind": "variations"},
    ]  # fmt: skip
    assert bank["teacher"]["architecture"] == "wrn101"
    assert [student["name"] for student in bank["students"]] == [f"{RUN}/student.safetensors"]
    assert ask("bank", bank=f"{RUN}/bank.lmdb")["run"] == RUN
    assert ask("bank", bank="banks/odd/names.lmdb")["teacher"] is None


def test_parent_siblings_variations_and_rejected(ask, folder):
    kept, dropped = (BankReader(folder.results / name).load().parents.tolist() for name in (VARIATIONS, REJECTED))
    parent = next(i for i in range(60) if kept.count(i) == 1 and dropped.count(i) == 1)
    groups = {group["title"]: group for group in ask("image", bank=INIT, index=parent)["relatives"]}
    assert groups["variations"]["index"] == [kept.index(parent)]
    assert groups["rejected by the fidelity filter"]["index"] == [dropped.index(parent)]
    two = next(i for i in range(60) if kept.count(i) == 2)
    first, second = (i for i, other in enumerate(kept) if other == two)
    groups = {group["title"]: group for group in ask("image", bank=VARIATIONS, index=first)["relatives"]}
    assert (groups["parent"]["bank"], groups["parent"]["index"]) == (INIT, [two])
    assert groups["others of the same parent"]["index"] == [second]


def test_compared_banks(ask, folder):
    found = ask("compare", a=INIT, b=VARIATIONS)
    one, other = (BankReader(folder.results / name).load() for name in (INIT, VARIATIONS))
    assert found["counts"] == [torch.bincount(bank.labels, minlength=3).tolist() for bank in (one, other)]
    histogram = found["histograms"]["confidence"]
    both = [bank.scores["confidence"].numpy().astype(float) for bank in (one, other)]
    assert histogram["low"] == min(values.min() for values in both)
    edges = np.linspace(histogram["low"], histogram["high"], 41)
    for shares, values in zip(histogram["shares"], both, strict=True):
        assert np.allclose(shares, np.histogram(values, edges)[0] / len(values), atol=1e-6)
        assert sum(shares) == 1 or abs(sum(shares) - 1) < 1e-4
    assert found["only"] == [[], ["cosine"]]


def test_runs_that_ended_and_that_go_on(ask):
    runs = {run["name"]: run for run in ask("library")["runs"]}
    assert {name: (run["running"], run["last"]) for name, run in runs.items()} == {
        RUN: (False, {"epoch": 2.0, "acc1": 75.0, "agree1": 80.0}),
        RUNNING: (True, {"epoch": 1.0, "acc1": 50.0, "agree1": 55.0}),
        "runs/scratch/bars_wrn101/seed0": (False, {"epoch": 1.0, "acc1": 40.0}),
    }
    assert (runs[RUN]["bank"], runs[RUNNING]["bank"]) == (f"{RUN}/bank.lmdb", f"{CHECKPOINT}/bank.lmdb")
    assert ask("run", run=RUN)["rows"] == {"epoch": [1, 2], "loss": [2.5, 1.25], "acc1": [50, 75], "agree1": [55, 80]}


def test_a_run_keeps_its_name_from_the_checkpoint_to_the_end(own_folder):
    with client_of(own_folder.results) as client:

        def rows():
            return client.get("/api/run", params={"run": RUNNING}).json()

        assert rows()["rows"]["epoch"] == [1]  # of the checkpoint's state
        write_rows_csv(own_folder.results / RUNNING / "history.partial.csv", [{"epoch": 1, "acc1": 1}, {"epoch": 2, "acc1": 2}])
        assert (rows()["rows"]["epoch"], rows()["running"]) == ([1, 2], True)
        write_rows_csv(own_folder.results / CHECKPOINT / "history.csv", [{"epoch": n, "acc1": n} for n in (1, 2, 3)])
        assert (rows()["rows"]["epoch"], rows()["running"]) == ([1, 2, 3], True)
        shutil.rmtree(own_folder.results / CHECKPOINT)
        (own_folder.results / RUNNING / "history.partial.csv").unlink()
        write_rows_csv(own_folder.results / RUNNING / "history.csv", [{"epoch": n, "acc1": n} for n in (1, 2, 3, 4)])
        assert (rows()["rows"]["epoch"], rows()["running"], rows()["bank"]) == ([1, 2, 3, 4], False, None)


def test_places_of_runs():
    found = gather_runs(
        ["checkpoints/teacher/d_w/fingerprint", "checkpoints/scratch/d_w_seed3/fingerprint", "history.csv",
         "checkpoints/augment/d_w/fingerprint", "a/checkpoints/distill/cmi/d_t_s_seed12/fingerprint"], [],
    )  # fmt: skip
    assert {name: run.checkpoint for name, run in found.items()} == {
        "teachers/d_w": "checkpoints/teacher/d_w",
        "runs/scratch/d_w/seed3": "checkpoints/scratch/d_w_seed3",
        "a/runs/cmi/d_t_s/seed12": "a/checkpoints/distill/cmi/d_t_s_seed12",
        ".": None,
    }


def test_a_history_that_is_none_is_told(own_folder):
    (own_folder.results / RUN / "history.csv").write_text("epoch,acc1\n1,good\n")
    with client_of(own_folder.results) as client:
        run = client.get("/api/run", params={"run": RUN}).json()
    assert run["rows"] == {}
    assert run["note"].startswith("history.csv: not a history of this package")


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state": {"rows": [{"epoch": 1, "trap": _Trap(str(tmp_path / "sprung"))}]}}, tmp_path / "state.pt")
    assert read_state(tmp_path) == {}
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "state.pt").write_bytes(b"rubbish")
    assert read_state(tmp_path) == {}


def test_pages_come_without_torch(folder):
    script = f"""
import sys
from starlette.testclient import TestClient
from dfkd.inspection.viewer.app import create_app
client = TestClient(create_app({str(folder.results)!r}), base_url="http://127.0.0.1")
for address in ("/", "/api/bank?bank={INIT}", "/api/page?bank={INIT}&sort=-confidence", "/api/image?bank={INIT}&index=3"):
    assert client.get(address).status_code == 200, address
assert "torch" not in sys.modules and "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_empty_folder_and_an_empty_bank(own_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with client_of(tmp_path / "empty") as client:
        assert client.get("/api/library").json() == {"root": str(tmp_path / "empty"), "banks": [], "runs": []}
    BankWriter(tmp_path / "empty" / "bank.lmdb", own_folder.meta).close()
    with client_of(tmp_path / "empty") as client:
        page = unpack(client.get("/api/page", params={"bank": "bank.lmdb"}))
        assert (page.total, page.columns["index"]) == (0, [])
        assert client.get("/api/bank", params={"bank": "bank.lmdb"}).json()["counts"] == [0, 0, 0]
        assert client.get("/api/compare", params={"a": "bank.lmdb", "b": "bank.lmdb"}).json()["histograms"] == {}
        assert client.get("/api/thumbs", params={"bank": "bank.lmdb"}).status_code == 200
