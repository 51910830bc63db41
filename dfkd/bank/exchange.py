"""What the export formats share: the note that carries a bank's metadata, rows, PNG pictures, and the way back."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from dfkd.bank.format import BLOCK_IMAGES, BankMeta, Block, encode
from dfkd.bank.grid import to_pil
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import write_bank
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError

NOTE_FILE = "bank.json"  # of the formats that are a folder of files


class Note(BaseModel):
    """What an export says of its bank besides the images: enough to make the same bank of it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dfkd bank export 1"] = "dfkd bank export 1"
    meta: BankMeta
    scores: list[str]  # names, in their order
    block_images: list[int]  # images in each block
    records_sha256: str  # of the records of all blocks, one behind the other


class Row(NamedTuple):
    """One image of a bank."""

    image: np.ndarray  # uint8 [C,H,W]
    label: int
    parent: int = -1
    scores: tuple[float, ...] = ()


def note_of(reader: BankReader) -> Note:
    """The note of a bank; every block is read and checked for it."""
    digest, sizes = hashlib.sha256(), []
    names: list[str] = []
    for number, block in enumerate(reader.blocks()):
        digest.update(encode(block, number))
        sizes.append(len(block))
        names = list(block.scores)
    return Note(meta=reader.meta, scores=names, block_images=sizes, records_sha256=digest.hexdigest())


def parse_note(text: str | bytes, where: str | Path) -> Note:
    """The note in `text`. One that is none, or of a later version, is a `UserError` that names `where`."""
    try:
        return Note.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "content"
        raise UserError(
            f"{where}: not the note of an exported bank ({place}: {fault['msg']}); export it again, or remove the file."
        ) from None


def note_file(folder: Path) -> Note | None:
    """The note in `bank.json` of an exported folder; None where there is no such file."""
    path = folder / NOTE_FILE
    return parse_note(path.read_bytes(), path) if path.is_file() else None


def rows_of(reader: BankReader) -> Iterator[Row]:
    """All images of a bank in their order; memory holds a few blocks."""
    for block in reader.blocks():
        parents = block.parents if block.parents is not None else torch.full_like(block.labels, -1)
        columns = [values.tolist() for values in block.scores.values()]
        scores = zip(*columns, strict=True) if columns else itertools.repeat((), len(block))
        yield from map(Row, block.images.numpy(), block.labels.tolist(), parents.tolist(), scores)


def restore(output: str | Path, note: Note, rows: Iterator[Row], source: str | Path) -> BankMeta:
    """Publish the bank that `note` and `rows` were exported from: the same meta, the same records.

    Raises:
        UserError: the bank was exported before it was complete, or an image, label, parent or score is not what it was.
    """
    if note.meta.status != "complete":
        raise UserError(f"{source}: exported from a bank that was still being written; export it again once it is complete.")
    removable = (Path(source) / NOTE_FILE).is_file()
    otherwise = (
        f", or remove {NOTE_FILE} and name a teacher with --teacher to make a new bank of the images" if removable else ""
    )
    changed = UserError(
        f"{source}: not what was exported, an image, label or score was added, removed or changed; "
        f"export the bank again{otherwise}."
    )
    digest = hashlib.sha256()

    def records() -> Iterator[bytes]:
        for number, size in enumerate(note.block_images):
            part = list(itertools.islice(rows, size))
            if len(part) < size:
                raise changed
            record = _record(part, note.scores, note.meta.dataset, number, source)
            digest.update(record)
            yield record
        if next(rows, None) is not None or digest.hexdigest() != note.records_sha256:
            raise changed

    write_bank(output, note.meta, records())
    return BankReader(output).meta


def publish_new(
    output: str | Path, info: DatasetInfo, teacher_sha256: str, rows: Iterator[Row], source: str | Path
) -> BankMeta:
    """Publish a new init bank of images from elsewhere, in blocks of 256. Errors of `rows` leave nothing behind."""
    meta = BankMeta(kind="init", dataset=info, teacher_sha256=teacher_sha256, stage="import", stage_version=1)

    def records() -> Iterator[bytes]:
        for number in itertools.count():
            part = list(itertools.islice(rows, BLOCK_IMAGES))
            if not part:
                return
            yield _record(part, [], info, number, source)

    write_bank(output, meta, records())
    return BankReader(output).meta


def _record(rows: list[Row], names: list[str], info: DatasetInfo, number: int, source: str | Path) -> bytes:
    try:
        scores = torch.tensor([row.scores for row in rows], dtype=torch.float32).view(len(rows), len(names)).unbind(1)
        block = Block(
            torch.from_numpy(np.stack([row.image for row in rows])),
            torch.tensor([row.label for row in rows]),
            dict(zip(names, scores, strict=True)),
            torch.tensor([row.parent for row in rows]),
        )
        return encode(block.checked(info), number)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{source}: no images of {info.name} ({error}); export the bank again.") from None


def png_of(image: np.ndarray) -> bytes:
    """uint8 [C,H,W] as PNG, without loss; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    to_pil(torch.from_numpy(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels_of(content: bytes, where: str | Path, info: DatasetInfo) -> np.ndarray:
    """A PNG or JPEG file as uint8 [C,H,W].

    Raises:
        UserError: it cannot be read, or has another size than the images of the data set.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if picture.size != (info.image_size, info.image_size):
                size = f"{picture.width}×{picture.height}"
                raise UserError(f"{where}: {size} pixels, {info.name} has {info.image_size}×{info.image_size}; resize it.")
            if picture.mode.startswith(("I", "F")):
                raise UserError(f"{where}: more than 8 bits a channel; convert it to 8 bits.")
            pixels = np.array(picture.convert("RGB" if info.channels == 3 else "L"))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders have no common class for damaged files
        raise UserError(f"{where}: not an image that can be read ({type(error).__name__}); remove or mend it.") from None
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
