"""What the list shows of a bank: its meta and a few images, read in a child process. Imports no torch.

`python -m dfkd.inspection.viewer.outline` takes a JSON list of paths on stdin and prints a JSON line for each bank: a damaged
LMDB file can kill whoever reads it.
"""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dfkd.bank.file import BankFile
from dfkd.bank.meta import BankMeta
from dfkd.errors import UserError

THUMBS = 10
THUMB_EDGE = 32  # pixels


class Outline(NamedTuple):
    """A bank at a glance. `meta` is None and `fault` says why if the file is none."""

    meta: BankMeta | None
    fault: str
    thumbs: np.ndarray | None = None  # uint8 [n,C,H,W], evenly spread over the bank


def outline(path: str | Path) -> Outline:
    """Read a bank in this process."""
    try:
        bank = BankFile(path, allow_incomplete=True)
        places = np.linspace(0, len(bank), min(THUMBS, len(bank)), endpoint=False).astype(np.int64)
        return Outline(bank.meta, "", reduced(bank.pixels(places), THUMB_EDGE))
    except UserError as error:
        return Outline(None, str(error))


def outlines(paths: list[Path]) -> Iterator[Outline]:
    """Read banks in a child process, one after the other; one that kills it is damaged.

    The child walks through the whole tree of each file. Where it survived that, LMDB can read the file in any process.
    """
    todo = paths
    while todo:
        with tempfile.TemporaryFile("w+") as errors, _child(errors) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            json.dump([str(path) for path in todo], child.stdin)
            child.stdin.close()
            done = 0
            for line in child.stdout:
                yield _unpacked(line)
                done += 1
            child.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no output"])[-1]
        todo = todo[done:]
        if todo and child.returncode < 0:
            fault = "its pages are damaged, reading them kills the reader; copy or make the bank again."
            yield Outline(None, f"{todo[0]}: {fault}")
            todo = todo[1:]
        elif todo:
            yield from (Outline(None, f"{path}: could not be read ({last}).") for path in todo)
            return


def _child(errors: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-B", "-m", "dfkd.inspection.viewer.outline"]
    root = Path(__file__).resolve().parents[3]  # so that the child finds the package however this process found it
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root)


def _packed(found: Outline) -> dict[str, Any]:
    thumbs = None
    if found.thumbs is not None:
        thumbs = {"shape": found.thumbs.shape, "pixels": base64.b64encode(found.thumbs.tobytes()).decode("ascii")}
    return {"meta": found.meta.model_dump(mode="json") if found.meta else None, "fault": found.fault, "thumbs": thumbs}


def _unpacked(line: str) -> Outline:
    content = json.loads(line)
    if content["meta"] is None:
        return Outline(None, content["fault"])
    thumbs = content["thumbs"]
    pixels = np.frombuffer(base64.b64decode(thumbs["pixels"]), np.uint8).reshape(thumbs["shape"])
    return Outline(BankMeta.model_validate(content["meta"]), "", pixels)


def reduced(images: np.ndarray, edge: int) -> np.ndarray:
    """uint8 [N,C,H,W] at most `edge` wide and high: means over squares of pixels, a rim that is left over is dropped."""
    count, channels, height, width = images.shape
    factor = math.ceil(max(height, width) / edge)
    if factor <= 1:
        return images
    cut = images[:, :, : height // factor * factor, : width // factor * factor]
    squares = cut.reshape(count, channels, height // factor, factor, width // factor, factor)
    return np.rint(squares.mean((3, 5), dtype=np.float32)).astype(np.uint8)


def main() -> None:
    """Print the outline of each bank."""
    for path in json.load(sys.stdin):
        print(json.dumps(_packed(outline(path))), flush=True)


if __name__ == "__main__":
    main()
