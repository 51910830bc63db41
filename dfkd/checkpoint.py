"""Whole-state save and restore, and the write-then-rename that every artefact goes through."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only when the block ends without an error.

    Raises:
        UserError: the disk is full or the folder cannot be written; the partial file is removed.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); make space or choose another folder.") from error
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{target}: could not be written ({error.strerror or error}); make space, then run the same command again."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON. A missing or broken file is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again.") from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. A missing file is a `UserError`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None


def fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of `content` as canonical JSON: equal exactly when settings, versions and inputs are equal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint:
    """A stage's resumable state in a folder of its own, outside of every declared output.

    The folder holds `state.pt` and whatever else the stage keeps between attempts (a half-written bank, say). A
    state whose fingerprint does not fit (other settings, stage version or inputs) is discarded with the folder.
    """

    def __init__(self, folder: str | Path, content: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint(content)
        self._mark = self.folder / "fingerprint"
        if self.folder.exists() and self._read_mark() != self.fingerprint:
            logger.info("checkpoint %s belongs to other settings or inputs: starting anew", self.folder)
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made ({error.strerror}); free the path or the disk.") from error
        with atomic_path(self._mark) as temporary:
            temporary.write_text(self.fingerprint)

    def _read_mark(self) -> str:
        try:
            return self._mark.read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, and lists and dicts of them) with the random state of this process."""
        with atomic_path(self.folder / "state.pt") as temporary:
            torch.save({"state": dict(state), "random": random_state()}, temporary)

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, or None; restores the random state that was saved with it."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch names no common class for a damaged file
            logger.warning("checkpoint %s cannot be read (%s): starting anew", path, error)
            return None
        set_random_state(content["random"])
        logger.info("resuming from %s", path)
        return content["state"]

    def remove(self) -> None:
        """Remove the folder: the stage is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of every random generator that the package uses: python, numpy, torch."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` gave."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
