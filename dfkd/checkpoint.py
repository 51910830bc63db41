"""Whole-state save and restore: a stage that was killed goes on where it was."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.files import atomic_path
from dfkd.locks import clear, hold, release

STATE = "state.pt"

logger = logging.getLogger(__name__)


def canonical(content: Mapping[str, Any]) -> str:
    """`content` as JSON that is equal for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)


def fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of `content` as canonical JSON: equal exactly when settings, versions and inputs are equal."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()


class Checkpoint:
    """A stage's resumable state in a folder of its own, outside of every declared output.

    The folder holds `state.pt` and whatever else the stage keeps between attempts (a half-written bank, say). A
    state whose fingerprint does not fit (other settings, stage version or inputs) is discarded with the folder. One process
    at a time has the folder: another one that asks for it says who holds it, and waits until that one ends.
    """

    def __init__(self, folder: str | Path, content: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint(content)
        self._mark = self.folder / "fingerprint"
        hold(self.folder)
        if self._mark.exists() and self._read_mark() != self.fingerprint:
            logger.info("checkpoint %s belongs to other settings or inputs: starting anew", self.folder)
            clear(self.folder)
        with atomic_path(self._mark) as temporary:
            temporary.write_text(self.fingerprint)

    def _read_mark(self) -> str:
        try:
            return self._mark.read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, and lists and dicts of them) with the random state of this process."""
        with atomic_path(self.folder / STATE) as temporary:
            try:
                torch.save({"state": dict(state), "random": random_state()}, temporary)
            except RuntimeError as error:  # torch's writer has no OSError of its own
                raise OSError(errno.ENOSPC, "no space left on the disk, or it fails") from error

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, or None; restores the random state that was saved with it."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = dict(content["state"])
            set_random_state(content["random"])
        except Exception as error:  # torch names no common class for a damaged file
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            logger.warning("checkpoint %s cannot be read (%s): starting anew", path, reason)
            return None
        logger.info("resuming from %s", path)
        return state

    def remove(self) -> None:
        """Remove the folder, and let others have it: the stage is finished."""
        clear(self.folder)
        release(self.folder)


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
