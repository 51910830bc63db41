"""A bank as Parquet files that `datasets.load_dataset` of Hugging Face reads with images and class names, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.bank.exchange import Note, Row, note_of, parse_note, pixels_of, png_of, rows_of
from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import atomic_folder

SHARD_IMAGES = 50_000
GROUP_IMAGES = 1_000  # in a row group: what a reader holds at once
NOTE_KEY = b"dfkd"  # of the schema's metadata, beside Hugging Face's own

CARD = """---
task_categories:
- image-classification
pretty_name: {title}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
dataset_info:
  features:
{features}
  splits:
  - name: train
    num_examples: {images}
---

# {title}

{images:,} synthetic images of {classes} classes, {shape}, made by `dfkd` from the weights of a classifier of {dataset} alone
(teacher SHA-256 `{teacher}`), without its training data. Stage `{stage}`, kind `{kind}`, seed {seed}.

```python
from datasets import load_dataset

images = load_dataset("path/of/this/folder", split="train")
```

`label` is the class that the image stands for, `parent` the index of the image in the bank that this one was made from
(-1: none){scores}.
"""


def export_parquet(path: str | Path, output: str | Path, shard_images: int = SHARD_IMAGES) -> int:
    """Write the folder `output` with `data/train-00000-of-0000N.parquet` and a data card, `README.md`.

    Columns: `image` (PNG bytes and a file name), `label`, `parent`, and `scores` where the bank has some. The schema's
    metadata name the features for `datasets`, and carry the bank's own metadata. Returns the number of images.

    Raises:
        UserError: the bank cannot be read, or `output` is there and not empty.
    """
    reader = BankReader(path, allow_incomplete=True)
    note = note_of(reader)
    schema = _schema(note)
    rows = enumerate(rows_of(reader))
    shards = max(1, -(-len(reader) // shard_images))
    with atomic_folder(output) as folder:
        (folder / "data").mkdir()
        for shard in range(shards):
            name = folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
            left = min(shard_images, len(reader) - shard * shard_images)
            with pq.ParquetWriter(name, schema) as writer:
                while left > 0:
                    part = list(islice(rows, min(GROUP_IMAGES, left)))
                    writer.write_table(_table(part, schema, note))
                    left -= len(part)
        (folder / "README.md").write_text(_card(note), encoding="utf-8")
    return len(reader)


def _schema(note: Note) -> pa.Schema:
    fields = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
        pa.field("parent", pa.int64()),
    ]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": note.meta.dataset.classes, "_type": "ClassLabel"},
        "parent": {"dtype": "int64", "_type": "Value"},
    }
    if note.scores:  # Parquet has no empty struct
        fields.append(pa.field("scores", pa.struct([(name, pa.float32()) for name in note.scores])))
        features["scores"] = {name: {"dtype": "float32", "_type": "Value"} for name in note.scores}
    named = json.dumps({"info": {"features": features}}, ensure_ascii=False)
    return pa.schema(fields, metadata={b"huggingface": named.encode(), NOTE_KEY: note.model_dump_json().encode()})


def _table(part: list[tuple[int, Row]], schema: pa.Schema, note: Note) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": png_of(row.image), "path": f"{index:08d}.png"} for index, row in part],
        "label": [row.label for _, row in part],
        "parent": [row.parent for _, row in part],
    }
    if note.scores:
        columns["scores"] = [dict(zip(note.scores, row.scores, strict=True)) for _, row in part]
    return pa.Table.from_pydict(columns, schema=schema)


def _card(note: Note) -> str:
    meta, info = note.meta, note.meta.dataset
    lines = ["- name: image", "  dtype: image", "- name: label", "  dtype:", "    class_label:", "      names:"]
    lines += [f"        '{label}': {json.dumps(name, ensure_ascii=False)}" for label, name in enumerate(info.classes)]
    lines += ["- name: parent", "  dtype: int64"]
    if note.scores:
        lines += ["- name: scores", "  struct:"]
        lines += [f"  - name: {json.dumps(name, ensure_ascii=False)}\n    dtype: float32" for name in note.scores]
    return CARD.format(
        title=f"Synthetic images of a {info.name} classifier",
        features="\n".join(f"  {line}" for text in lines for line in text.split("\n")),
        images=meta.images,
        classes=len(info.classes),
        shape=f"{info.image_size}×{info.image_size} pixels",
        dataset=info.name,
        teacher=meta.teacher_sha256,
        stage=meta.stage,
        kind=meta.kind,
        seed=meta.seed,
        scores=f"; `scores` are {', '.join(f'`{name}`' for name in note.scores)}" if note.scores else "",
    )


def parquet_files(source: Path) -> list[Path]:
    """The Parquet files of a file or folder, in the order of their names."""
    return sorted(source.rglob("*.parquet")) if source.is_dir() else [source]


def parquet_note(source: Path) -> Note | None:
    """The note in the schema of the first file; None for files of others."""
    first = parquet_files(source)[0]
    metadata = _opened(first).schema_arrow.metadata or {}
    return parse_note(metadata[NOTE_KEY], first) if NOTE_KEY in metadata else None


def parquet_rows(source: Path, info: DatasetInfo, note: Note | None) -> Iterator[Row]:
    """The images of all files in the order of their names. Files of others need the columns `image` and `label`.

    Raises:
        UserError: a file that is no Parquet, lacks a column, or holds an image of another size.
    """
    names = note.scores if note is not None else []
    for path in parquet_files(source):
        file = _opened(path)
        try:
            for batch in file.iter_batches(GROUP_IMAGES):
                columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                for index, (image, label) in enumerate(zip(columns["image"], columns["label"], strict=True)):
                    where = f"{path}: {image['path'] or index}"
                    parent = columns["parent"][index] if note is not None else -1
                    scores = tuple(columns["scores"][index][name] for name in names)
                    yield Row(pixels_of(image["bytes"], where, info), label, parent, scores)
        except (pa.ArrowException, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path}: no rows of images with labels ({error}); export the bank again.") from None


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error}); copy or export it again.") from None
