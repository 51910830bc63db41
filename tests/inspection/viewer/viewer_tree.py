"""A results folder with all that the viewer shows: banks that are whole, broken, growing, and runs, ended and in progress."""

import contextlib
import json
import shutil
import socket
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import uvicorn
from starlette.testclient import TestClient

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.inspection.viewer.app import create_app
from dfkd.models import build_model
from dfkd.models.weights import save_weights

HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = [{"epoch": 1, "loss": 2.5, "acc1": 50.0, "agree1": 55.0}, {"epoch": 2, "loss": 1.25, "acc1": 75.0, "agree1": 80.0}]
INIT, VARIATIONS, REJECTED = (f"banks/bars_wrn101/{name}.lmdb" for name in ("init", "variations", "rejected"))
RUN, RUNNING = "runs/dda/bars_wrn101_wrn101/seed0", "runs/dda/bars_wrn101_wrn101/seed1"
CHECKPOINT = "checkpoints/distill/dda/bars_wrn101_wrn101_seed1"


def publish(path: Path, meta: BankMeta, images, labels, scores=None, parents=None) -> Path:
    """A bank, and nothing beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with BankWriter(path.with_suffix(".work"), meta, resume=False) as writer:
        writer.append_images(images, labels, scores, parents)
        writer.publish(path)
    for left in path.parent.glob(f"{path.stem}.work*"):
        left.unlink()
    return path


def build(tree, results: Path) -> SimpleNamespace:
    """Copy the banks and the teacher of `tree` and add to them; names of what is there, and its content."""
    shutil.copytree(tree.results, results)
    common = {"dataset": tree.info, "teacher_sha256": tree.card.sha256, "stage": "distill", "stage_version": 1, "kind": "run"}
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    publish(results / RUN / "bank.lmdb", BankMeta(**common, extra={"method": "dda", "student": "wrn101"}), images, labels)
    torch.manual_seed(3)
    student = build_model("wrn101", 3, 1, 8).eval()
    card = tree.card.model_copy(
        update={
            "role": "student", "stage": "distill dda", "lineage": {"teacher": tree.card.sha256},
            "metrics": {"acc1": 75.0, "agree1": 80.0},
        }
    )  # fmt: skip
    save_weights(results / RUN / "student.safetensors", student, card)
    write_rows_csv(results / RUN / "history.csv", ROWS)
    write_rows_csv(results / "runs" / "scratch" / "bars_wrn101" / "seed0" / "history.csv", [{"epoch": 1, "acc1": 40.0}])
    growing = results / CHECKPOINT / "bank.lmdb"
    with BankWriter(growing, BankMeta(**common, extra={"method": "dda"})) as writer:
        writer.append_images(images[:10], labels[:10])
    torch.save(
        {"state": {"rows": ROWS[:1], "run": {"weights": torch.zeros(4)}}, "random": {}}, results / CHECKPOINT / "state.pt"
    )
    (results / CHECKPOINT / "fingerprint").write_text("ab" * 32)
    hostile = tree.info.model_copy(update={"classes": [HOSTILE, "'quoted' & <b>", "plain"]})
    publish(
        results / "banks" / "odd" / "names.lmdb",
        BankMeta(kind="init", stage="init-bank", stage_version=1, dataset=hostile, teacher_sha256="0" * 64),
        images,
        labels,
        {HOSTILE: torch.rand(30, generator=generator)},
    )
    truncated = results / "banks" / "odd" / "truncated.lmdb"
    truncated.write_bytes(tree.init.read_bytes()[:9000])
    return SimpleNamespace(
        results=results,
        student=student,
        growing=growing,
        run_images=images,
        run_labels=labels,
        meta=BankMeta(**common),
        tree=tree,
    )


def write_rows_csv(path: Path, rows) -> None:
    """A history as the stages write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    path.write_text("\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]) + "\n")


def deadly(bank: Path) -> None:
    """Change a bank so that LMDB dies of it: the third key of the tree's only leaf lies behind the file."""
    content = bytearray(bank.read_bytes())
    struct.pack_into("<H", content, 8192 + 16 + 2 * 2, 0xF000)
    bank.write_bytes(content)


def client_of(results: Path) -> TestClient:
    """A client of the folder's viewer, without a socket."""
    return TestClient(create_app(results, device="cpu"), base_url="http://127.0.0.1:8765")


def unpack(response) -> SimpleNamespace:
    """Columns, pixels uint8 [n,C,H,W] and the rest of a frame."""
    assert response.status_code == 200, response.text
    content = response.content
    length = int.from_bytes(content[:4], "little")
    head = json.loads(content[4 : 4 + length])
    count = len(head["columns"]["index"])
    pixels = np.frombuffer(content[4 + length :], np.uint8).reshape(count, *head["shape"])
    return SimpleNamespace(pixels=pixels, **head)


@contextlib.contextmanager
def served(folder: Path):
    """The address of a viewer of the folder, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(folder, device="cpu"), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
