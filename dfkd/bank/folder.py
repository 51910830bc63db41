"""A bank as a folder of PNG files, `<label>/<index>.png`, and back; folders of others too."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dfkd.bank.exchange import NOTE_FILE, Note, Row, note_file, note_of, pixels_of, png_of, rows_of
from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import atomic_folder, write_json

TABLE = "images.csv"
SUFFIXES = (".png", ".jpg", ".jpeg")


def export_folder(path: str | Path, output: str | Path) -> int:
    """Write images without loss as `<label>/<index>.png`, labels, parents and scores as `images.csv`, the rest as `bank.json`.

    Labels are padded with zeros, so that their order by name is their order. Returns the number of images.

    Raises:
        UserError: the bank cannot be read, or `output` is there and not empty.
    """
    reader = BankReader(path, allow_incomplete=True)
    note, classes = note_of(reader), reader.meta.dataset.classes
    digits, places = len(str(len(classes) - 1)), max(len(str(len(reader) - 1)), 6)
    with atomic_folder(output) as folder:
        for label in range(len(classes)):
            (folder / f"{label:0{digits}d}").mkdir()
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "label", "class", "parent", *note.scores])
            for index, row in enumerate(rows_of(reader)):
                name = f"{row.label:0{digits}d}/{index:0{places}d}.png"
                (folder / name).write_bytes(png_of(row.image))
                scores = [f"{value:.9g}" for value in row.scores]
                table.writerow([name, row.label, classes[row.label], row.parent, *scores])
        write_json(folder / NOTE_FILE, note.model_dump(mode="json"))
    return len(reader)


def folder_note(folder: Path) -> Note | None:
    """The note of an exported folder; None for a folder of others."""
    return note_file(folder)


def folder_rows(folder: Path, info: DatasetInfo, note: Note | None) -> Iterator[Row]:
    """The images of a folder: with a note those of `images.csv` in its order, else those in `<label or class name>/*.png|jpg`.

    Without a note, the files' names give the order over all labels, as `export_folder` numbers them. Hidden files are passed
    over.

    Raises:
        UserError: a folder that is no class, no images at all, an image that cannot be read or has another size; a file that
            the table names and that is not there.
    """
    files = _files(folder, info)
    if note is not None:
        return _restored(folder, files, info)
    if not files:
        raise UserError(f"{folder}: holds no images; put PNG or JPEG files into a folder named by label or class.")
    return (Row(pixels_of(file.read_bytes(), file, info), label) for file, label in files)


def _files(folder: Path, info: DatasetInfo) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds a folder of PNG files for each class.")
    labels = {name: label for label, name in enumerate(info.classes)}
    found: list[tuple[Path, int]] = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        label = int(inner.name) if inner.name.isdecimal() else labels.get(inner.name, -1)  # a number is a label, as exported
        if not 0 <= label < len(info.classes):
            raise UserError(f"{inner}: neither a class of {info.name} nor a label from 0 to {len(info.classes) - 1}.")
        visible = (file for file in inner.iterdir() if not file.name.startswith("."))
        found += [(file, label) for file in visible if file.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda item: (item[0].name, item[1]))


def _restored(folder: Path, files: list[tuple[Path, int]], info: DatasetInfo) -> Iterator[Row]:
    there = {f"{file.parent.name}/{file.name}": file for file, _ in files}
    table = folder / TABLE
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for line in list(csv.reader(file))[1:]:
                name, label, _, parent, *scores = line
                if name not in there:
                    raise UserError(
                        f"{table}: names {name}, which is not in the folder; export the bank again, or remove {NOTE_FILE} and "
                        "name a teacher with --teacher to make a new bank of what is there."
                    )
                path = there.pop(name)
                yield Row(pixels_of(path.read_bytes(), path, info), int(label), int(parent), tuple(map(float, scores)))
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: cannot be read ({error}); export the bank again.") from None
    if there:
        raise UserError(f"{table}: does not name {min(there)}; remove that file, or export the bank again.")
