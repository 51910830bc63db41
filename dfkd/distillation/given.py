"""The images that a method is given: banks of its teacher, or a transfer set from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.transfer import UNLABELLED, check_transfer_set, read_transfer_set, transfer_sha256
from dfkd.distillation.store import ImageStore, is_streamed
from dfkd.distillation.stream import ArraySource, BankSource, Source, Store, StreamedStore
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.methods import METHODS, MethodSettings, transfer_set
from dfkd.models.weights import WeightsCard
from dfkd.packed.stream import PackedSource, kept_source, packed_lineage
from dfkd.runtime import Runtime


@dataclass(frozen=True)
class Given:
    """Images and labels, and what they are. Close it in the end: for images that stay in a packed file there are processes."""

    outside: ArraySource | PackedSource | None
    readers: dict[Path, BankReader]
    lineage: dict[str, str]  # the teacher and every source of images → SHA-256; of a packed file its BLAKE2b

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(len(reader) for reader in self.readers.values()) + (len(self.outside.labels) if self.outside else 0)

    def streamed(self, settings: MethodSettings, own: int, shape: tuple[int, int, int], runtime: Runtime) -> bool:
        """Whether they are streamed, beside so many images [C,H,W] of the run's own."""
        packed = isinstance(self.outside, PackedSource)
        return packed or (self.count > 0 and is_streamed(settings.store, self.count + own, shape, runtime))

    def store(self, own: int, shape: tuple[int, int, int], settings: MethodSettings, streamed: bool, runtime: Runtime) -> Store:
        """The images, on the device or streamed, with room for so many of the run's own."""
        if streamed:
            sources: list[Source] = [self.outside] if self.outside else []
            sources += [BankSource(reader) for reader in self.readers.values() if len(reader)]
            return StreamedStore(sources, own, shape, settings.shuffle_buffer, runtime)
        store = ImageStore(self.count + own, shape, runtime)
        if isinstance(self.outside, ArraySource):
            store.append(self.outside.images, self.outside.labels)
        for reader in self.readers.values():
            store.append_bank(reader)
        return store

    def close(self) -> None:
        """End the processes that decode, if there are any."""
        if self.outside is not None:
            self.outside.close()


def read_given(
    method: str,
    settings: MethodSettings,
    teacher: WeightsCard,
    banks: Sequence[Path],
    data: Path | None,
    packed: Path | None = None,
) -> Given:
    """What a run of a method is given.

    Args:
        packed: the packed file that holds the training images of `data`, if that was prepared with `keep_packed`.

    Raises:
        UserError: images that the method would not look at, or none where it needs some; a bank of another teacher; a
            transfer set that does not fit the teacher.
    """
    kind, _ = transfer_set(method, settings)
    _check_given(method, kind, banks, data, packed)
    readers = {path: BankReader(path, teacher_sha256=teacher.sha256) for path in banks}
    lineage = {"teacher": teacher.sha256, **{f"bank {path.stem}": file_sha256(path) for path in banks}}
    outside = None
    if data is not None:
        lineage["data"] = transfer_sha256(data)
        outside = _outside(data, packed, kind, teacher.dataset, settings.store)
        lineage |= packed_lineage(outside)
    return Given(outside, readers, lineage)


def _outside(data: Path, packed: Path | None, kind: str, info: DatasetInfo, store: str) -> ArraySource | PackedSource:
    """A transfer set, in memory or where it was packed; seen and cropped as the teacher's data set is."""
    if kind != "folder":
        crop = {key: getattr(info, key) for key in ("crop", "crop_scale", "crop_ratio")}
        source = kept_source(data, packed, check_transfer_set(data, kind, info).model_copy(update=crop), store)
        if source is not None:
            if kind == "dataset":
                source.labels = torch.full_like(source.labels, UNLABELLED)
            return source
    return ArraySource(*read_transfer_set(data, kind, info))


def _check_given(method: str, kind: str, banks: Sequence[Path], data: Path | None, packed: Path | None) -> None:
    """Refuse images that the method would not look at, and miss those that it needs."""
    if (kind in ("train", "dataset", "folder")) != (data is not None):
        needs = f"distils on transfer_set {kind}" if kind else "makes its images"
        wants = "give the images with --data" if data is None else "leave --data away"
        raise UserError(f"method {method}: {needs}; {wants} (it is for the control 'real' and for the 'kd' methods).")
    if packed is not None and kind not in ("train", "dataset"):
        raise UserError(f"method {method}: takes no training images of a prepared data set here; leave --packed away.")
    if METHODS[method].transfer and (kind == "bank") != bool(banks):
        wants = "give the bank with --bank" if not banks else "leave --bank away"
        raise UserError(f"method {method}: distils on transfer_set {kind}; {wants}.")
