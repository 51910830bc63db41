"""Answers of a teacher that runs leave to each other: one HDF5 file, read whole, replaced whole.

`answers.h5` holds the attributes `format` and `identity` (JSON: everything that decides the bits of an answer), and

    filled   uint8 [⌈N·V/8⌉]  bit i·V + v, most significant first: whether the answer to view v of image i is there
    answers  uint8 [n,bytes]  the bytes of those answers in that order, little-endian logits of type `dtype`

with a checksum for each chunk. Runs beside each other read without a lock, since a file is never changed once it has its name;
one that writes holds the folder, takes over what others have added since, and replaces the file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from dfkd.checkpoint import canonical
from dfkd.hdf5 import atomic_hdf5
from dfkd.locks import hold, release

logger = logging.getLogger(__name__)

FORMAT = "dfkd answers 1"
BLOCK = 65_536  # answers that are read or written at a time
CHUNK = 4096


class AnswerFile:
    """The file of one identity in a folder of its own. What cannot be read is said, and counts as not there."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.path, self.identity = folder, folder / "answers.h5", canonical(identity)
        self._state: tuple[int, ...] = ()  # of the file that was read
        self._known = 0  # answers in it

    def read(self, filled: torch.Tensor, table: torch.Tensor) -> None:
        """Add what is there to the answers of a run, in place.

        Args:
            filled: bool [cells], on the CPU.
            table: [cells,K] logits.
        """
        self._state, self._known = self._stat(), 0
        if not self._state:
            return
        try:
            with h5py.File(self.path, "r") as file:
                known = self._checked(file, filled, table)
                cells = known.nonzero().flatten()
                for start in range(0, len(cells), BLOCK):
                    part = torch.from_numpy(file["answers"][start : start + BLOCK]).view(table.dtype)
                    place = cells[start : start + BLOCK].to(table.device)
                    table.index_copy_(0, place, part.to(table.device))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            logger.warning("%s: not this teacher's answers to these images (%s); left out, made anew", self.path, reason)
            return
        filled |= known
        self._known = len(cells)

    def _checked(self, file: h5py.File, filled: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Which cells are there, bool [cells]. Raises a ValueError if the file is another's or does not fit itself."""
        for key, wanted in (("format", FORMAT), ("identity", self.identity), ("dtype", str(table.dtype))):
            if file.attrs.get(key) != wanted:
                raise ValueError(f"another {key}")
        known = torch.from_numpy(np.unpackbits(file["filled"][()], count=len(filled))).bool()
        if file["answers"].shape != (int(known.sum()), table.shape[1] * table.element_size()):
            raise ValueError("another number of answers than it says")
        return known

    def write(self, filled: torch.Tensor, table: torch.Tensor) -> None:
        """Replace the file by the answers of a run and those that are there; nothing is written if the run adds none.

        Raises:
            UserError: the folder cannot be written, or the disk is full; the former file stays.
        """
        hold(self.folder)
        try:
            if self._stat() != self._state:
                self.read(filled, table)
            cells = filled.nonzero().flatten()
            if len(cells) == self._known:
                return
            with atomic_hdf5(self.path) as file:
                file.attrs["format"], file.attrs["identity"], file.attrs["dtype"] = FORMAT, self.identity, str(table.dtype)
                file.create_dataset("filled", data=np.packbits(filled.numpy()), fletcher32=True, track_times=False)
                shape = (len(cells), table.shape[1] * table.element_size())
                chunks = (min(CHUNK, shape[0]), shape[1])
                answers = file.create_dataset(
                    "answers", shape, np.uint8, chunks=chunks, maxshape=shape, fletcher32=True, track_times=False
                )
                for start in range(0, len(cells), BLOCK):
                    part = table.index_select(0, cells[start : start + BLOCK].to(table.device)).cpu()
                    answers[start : start + len(part)] = part.view(torch.uint8).numpy()
            self._state, self._known = self._stat(), len(cells)
        finally:
            release(self.folder)

    def _stat(self) -> tuple[int, ...]:
        """What tells this file from its successor; empty if there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns
