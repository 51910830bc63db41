"""A bank as tar files that the `webdataset` library and its kin read: `<index>.png`, `.cls`, `.json`, and back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfkd.bank.exchange import NOTE_FILE, Note, Row, note_file, note_of, pixels_of, png_of, rows_of
from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import atomic_folder, write_json

SHARD_IMAGES = 10_000
LARGEST = 64 << 20  # bytes of one member that are read; images of classifiers are far smaller
PICTURES = ("png", "jpg", "jpeg")


def export_webdataset(path: str | Path, output: str | Path, shard_images: int = SHARD_IMAGES) -> int:
    """Write the folder `output` with `<its name>-000000.tar`, … and `bank.json`. Returns the number of images.

    A sample is `<index>.png` without loss, `<index>.cls` (the label) and `<index>.json` (class name, parent, scores).
    Equal banks give equal bytes.

    Raises:
        UserError: the bank cannot be read, or `output` is there and not empty.
    """
    reader = BankReader(path, allow_incomplete=True)
    note = note_of(reader)
    rows = enumerate(rows_of(reader))
    with atomic_folder(output) as folder:
        for shard in range(-(-len(reader) // shard_images)):
            name = folder / f"{Path(output).name}-{shard:06d}.tar"
            with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as archive:
                for index, row in (next(rows) for _ in range(min(shard_images, len(reader) - shard * shard_images))):
                    _add(archive, index, row, note)
        write_json(folder / NOTE_FILE, note.model_dump(mode="json"))
    return len(reader)


def _add(archive: tarfile.TarFile, index: int, row: Row, note: Note) -> None:
    said: dict[str, Any] = {"index": index, "label": row.label, "class": note.meta.dataset.classes[row.label]}
    said |= {"parent": row.parent, "scores": dict(zip(note.scores, row.scores, strict=True))}
    text = json.dumps(said, ensure_ascii=False, allow_nan=False)
    for suffix, content in (("png", png_of(row.image)), ("cls", str(row.label).encode()), ("json", text.encode())):
        member = tarfile.TarInfo(f"{index:08d}.{suffix}")  # its time is 0, its owner nobody
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def webdataset_note(folder: Path) -> Note | None:
    """The note of an exported folder of shards; None for those of others."""
    return note_file(folder)


def webdataset_rows(folder: Path, info: DatasetInfo, note: Note | None) -> Iterator[Row]:
    """The samples of all `*.tar` of a folder, in the order of their names. Members are read in memory, never unpacked.

    Samples of others need a picture (`png`, `jpg`, `jpeg`) and its label (`cls`); what else they hold is passed over.

    Raises:
        UserError: a file that is no tar, a sample without picture or label, an image of another size.
    """
    for shard in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(shard, "r:") as archive:
                for key, sample in _samples(archive, shard):
                    yield _row(sample, f"{shard}: {key}", info, note)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{shard}: not a tar file that can be read ({error}); copy or export it again.") from None


def _samples(archive: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members that share the name before the first dot and stand behind each other."""
    key, sample = "", dict[str, bytes]()
    for member in archive:
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if not (member.isfile() and stem and dot) or folder.startswith("__"):
            continue
        if member.size > LARGEST:
            raise UserError(f"{shard}: {member.name} has {member.size:,} bytes, more than an image of a classifier; remove it.")
        found = f"{folder}/{stem}"
        if found != key and sample:
            yield key, sample
            sample = {}
        content = archive.extractfile(member)
        assert content is not None  # of a regular file
        key, sample[suffix.lower()] = found, content.read()
    if sample:
        yield key, sample


def _row(sample: dict[str, bytes], where: str, info: DatasetInfo, note: Note | None) -> Row:
    picture = next((sample[suffix] for suffix in PICTURES if suffix in sample), None)
    try:
        if picture is None:
            raise KeyError("png")
        label = int(sample["cls"])
        said = json.loads(sample["json"]) if note is not None else {}
        parent = int(said["parent"]) if note is not None else -1
        scores = tuple(float(said["scores"][name]) for name in note.scores) if note is not None else ()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: no sample with a picture and a label ({error}); write .png and .cls for each.") from None
    if not 0 <= label < len(info.classes):
        raise UserError(f"{where}: label {label}, {info.name} has labels from 0 to {len(info.classes) - 1}.")
    return Row(pixels_of(picture, where, info), label, parent, scores)
