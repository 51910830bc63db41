"""Columns of a bank in memory: read once, sorted and filtered as asked, cut into pages of columns and pixels."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dfkd.bank.file import BankFile, BlockColumns
from dfkd.errors import UserError, nearest
from dfkd.inspection.sidecar import BankScores, kept_scores
from dfkd.inspection.viewer.library import Library, Signature
from dfkd.inspection.viewer.outline import reduced
from dfkd.inspection.where import select

logger = logging.getLogger(__name__)

BANKS = 12  # whose columns are kept
ORDERS = 24  # of a bank: sorted columns, and selections
EDGE = 96  # pixels; larger images are sent reduced to at most this in pages
Value = TypeVar("Value")


class Recent(OrderedDict[Hashable, Value]):
    """The values that were asked for last, at most `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def get_or(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there."""
        if key not in self:
            self[key] = make()
            while len(self) > self.limit:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


class BankIndex:
    """A bank as it was when this was made, ready to be paged through.

    Args:
        name: of the bank, below the folder.
        path: its file.
        signature: of the file.
        former: the index of the same file when it was shorter; blocks that it knows are not read again.
        measured: scores that were measured in this process.

    Raises:
        UserError: the bank is damaged.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        signature: Signature,
        former: BankIndex | None = None,
        measured: BankScores | None = None,
    ) -> None:
        self.name, self.signature = name, signature
        self.file = BankFile(path, allow_incomplete=True)
        self.meta = self.file.meta
        self.classes = self.meta.dataset.classes
        self.own = self._own(former)
        self.note = ""
        self.scores = measured
        if measured is None:
            try:
                self.scores = kept_scores(path, self.meta.teacher_sha256)
            except UserError as error:
                self.note = str(error)
        self.columns: dict[str, np.ndarray] = self.own.copy()
        if self.scores is not None and len(self.scores) == len(self):
            self.columns |= self.scores.columns
        self._orders: Recent[np.ndarray] = Recent(ORDERS)
        self._unit: np.ndarray | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.file)

    @property
    def measured(self) -> bool:
        """Whether the teacher's scores and features are at hand."""
        return self.scores is not None and len(self.scores) == len(self)

    def _own(self, former: BankIndex | None) -> dict[str, np.ndarray]:
        known = 0
        if former is not None and former.file.identity == self.file.identity:
            before = former.file.checksums
            known = len(before) if self.file.checksums[: len(before)] == before else 0
        found = _named(self.file.gather(first=known))
        if known and former is not None:
            return {name: np.concatenate([values, found[name]]) for name, values in former.own.items()}
        return found

    def order(self, where: str, classes: Sequence[int], sort: str) -> np.ndarray:
        """Indices of the images for which `where` holds, of these classes (all if none is named), by `sort`.

        `sort` is a column or `index`, falling with a `-` before it; equal values keep the order of the bank.

        Raises:
            UserError: `where` or `sort` names what is not there.
        """
        with self._lock:
            return self._orders.get_or((where, tuple(classes), sort), lambda: self._select(where, classes, sort))

    def _select(self, where: str, classes: Sequence[int], sort: str) -> np.ndarray:
        chosen = select(where, self.columns, self.classes)
        if classes:
            chosen = chosen & np.isin(self.columns["label"], classes)
        everything = self._orders.get_or(sort, lambda: self._sorted(sort))
        return everything[chosen[everything]]

    def _sorted(self, sort: str) -> np.ndarray:
        name = sort.removeprefix("-")
        if name == "index":
            places = np.arange(len(self), dtype=np.int32)
            return places[::-1] if sort.startswith("-") else places
        if name not in self.columns:
            raise UserError(f"sort by '{name}': no such column; {nearest(name, ['index', *self.columns])}.")
        keys = self.columns[name]
        return np.argsort(-keys.astype(np.float64) if sort.startswith("-") else keys, kind="stable").astype(np.int32)

    def at(self, indices: Sequence[int]) -> np.ndarray:
        """The indices as an array.

        Raises:
            UserError: one of them is not in the bank.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise UserError(f"{self.name}: image {int(wanted.max())} of {len(self)}; the bank has no such image.")
        return wanted

    def values(self, indices: np.ndarray) -> dict[str, list[Any]]:
        """The columns of these images, JSON-ready, `index` first."""
        return {"index": indices.tolist()} | {name: plain(values[indices]) for name, values in self.columns.items()}

    def frame(self, indices: np.ndarray, **more: Any) -> bytes:
        """Columns and pixels of images in one message.

        See `framed`. Images that are larger than `EDGE` are reduced by averaging whole pixels.
        """
        pixels = reduced(self.file.pixels(indices), EDGE)
        return framed(pixels, columns=self.values(indices), size=self.meta.dataset.image_size, **more)

    def neighbours(self, feature: np.ndarray, count: int, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Indices and cosines of the images whose features are nearest to `feature` [D], nearest first.

        Raises:
            UserError: the bank has no features, or others.
        """
        cosines = self.unit_features() @ _unit(feature[None].astype(np.float32))[0]
        if without is not None:
            cosines[without] = -np.inf
        count = min(count, len(cosines) - (without is not None))
        nearest_few = (
            np.argpartition(-cosines, count - 1)[:count] if 0 < count < len(cosines) else np.arange(len(cosines))[:count]
        )
        ranked = nearest_few[np.lexsort((nearest_few, -cosines[nearest_few]))]
        return ranked, cosines[ranked]

    def unit_features(self) -> np.ndarray:
        """float32 [N,D] of length one."""
        features = self.features()
        if self._unit is None:
            self._unit = _unit(features.astype(np.float32))
        return self._unit

    def features(self) -> np.ndarray:
        """The teacher's penultimate features, float16 [N,D].

        Raises:
            UserError: they are not measured.
        """
        if not self.measured or self.scores is None:
            raise UserError(f"{self.name}: its features are not measured yet; measure them with the teacher first.")
        return self.scores.features


def _named(found: BlockColumns) -> dict[str, np.ndarray]:
    return {"label": found.labels, "parent": found.parents, **found.scores}


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    result: np.ndarray = features / np.maximum(lengths, 1e-12)
    return result


def framed(pixels: np.ndarray, **head: Any) -> bytes:
    """Pixels uint8 [n,C,H,W] and what is to be said of them, in one message.

    Four bytes with the length of a JSON text (little-endian), the JSON with `shape` [C,H,W] and `head`, the pixels. These are
    raw: to pack a page into a PNG takes several times as long as all else that is done for it (docs/benchmarks.md).
    """
    text = json.dumps({"shape": list(pixels.shape[1:]), **head}, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = text.encode()
    return len(encoded).to_bytes(4, "little") + encoded + np.ascontiguousarray(pixels).tobytes()


def plain(values: np.ndarray) -> list[Any]:
    """A column for JSON: floats with six significant digits, those that are not finite as None."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


class Indexes:
    """The indexes of the banks that were looked at last, renewed when a file has changed."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._kept: Recent[BankIndex] = Recent(BANKS)
        self._measured: dict[tuple[str, Signature], BankScores] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> BankIndex:
        """The index of a bank as it is now.

        Raises:
            UserError: there is no such bank, or it is damaged.
        """
        path, signature = self.library.located(name)
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:  # two requests for a bank that is not indexed yet read it once
            kept = self._kept.get(name)
            if kept is None or kept.signature != signature:
                kept = self._read(name, path, signature, kept)
            with self._lock:
                self._kept[name] = kept
                return self._kept.get_or(name, lambda: kept)

    def _read(self, name: str, path: Path, signature: Signature, former: BankIndex | None) -> BankIndex:
        bank = self.library.bank(name)  # LMDB can read it: that was tried in a process of its own
        try:
            return BankIndex(name, path, signature, former, self._measured.get((name, signature)))
        except UserError as error:
            if bank.meta is not None and bank.meta.status == "complete":
                self.library.note_fault(name, signature, str(error))
            raise

    def keep(self, name: str, signature: Signature, scores: BankScores) -> None:
        """Scores that were measured of the bank with this signature; in memory alone."""
        self._measured[name, signature] = scores
        with self._lock:
            self._kept.pop(name, None)
