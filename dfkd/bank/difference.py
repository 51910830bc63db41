"""What differs between two banks: metadata, counts, images by their pixels, and what is said of the images in both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dfkd.bank.pixels import pixel_hashes
from dfkd.bank.reader import BankColumns, BankReader

SHOWN = 10  # indices that a terminal is shown


def difference(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare two banks, complete or not; images are streamed. JSON-ready.

    Images are one and the same if their pixels are; the k-th copy in one bank is the k-th in the other.

    Returns:
        `same`; `metadata` (`key`, `a`, `b` of each that differs); `classes` (by name: images in a, in b; where they differ);
        `images`: `a`, `b`, `both`, `only_a`, `only_b` (indices), `moved` (pairs of indices of images in both); `changed`:
        of the images in both, pairs of indices whose `label` or `parent` differs, and by score how many differ and by how
        much at most; `scores_only`: names that one bank alone has, `a`, `b`; `blocks`: whether the images are divided into
        the same blocks.

    Raises:
        UserError: one of them is not a bank, or damaged.
    """
    readers = [BankReader(path, allow_incomplete=True) for path in (first, second)]
    left, right = (reader.columns() for reader in readers)
    pairs, only = _matched(*(list(_hashes(reader)) for reader in readers))
    names = [set(left.scores), set(right.scores)]
    result: dict[str, Any] = {
        "a": str(first),
        "b": str(second),
        "metadata": _metadata(*(reader.meta.model_dump(mode="json") for reader in readers)),
        "classes": _classes(readers, [left, right]),
        "images": {
            "a": len(left),
            "b": len(right),
            "both": len(pairs),
            "only_a": only[0],
            "only_b": only[1],
            "moved": pairs[pairs[:, 0] != pairs[:, 1]].tolist(),
        },
        "changed": _changed(left, right, pairs),
        "scores_only": {"a": sorted(names[0] - names[1]), "b": sorted(names[1] - names[0])},
        "blocks": readers[0].starts == readers[1].starts,
    }
    images, changed = result["images"], result["changed"]
    differs = (
        *(images[name] for name in ("only_a", "only_b", "moved")),
        *(result[name] for name in ("metadata", "classes")),
        *(changed[name] for name in ("label", "parent", "scores")),
        *result["scores_only"].values(),
    )
    return {**result, "same": not any(differs) and result["blocks"]}


def _hashes(reader: BankReader) -> Iterator[bytes]:
    for block in reader.blocks():
        yield from pixel_hashes(block.images)


def _matched(left: list[bytes], right: list[bytes]) -> tuple[np.ndarray, tuple[list[int], list[int]]]:
    """Pairs [P,2] of indices of equal images, by the second; indices of those in the one or the other alone."""
    waiting: dict[bytes, list[int]] = defaultdict(list)
    for index in reversed(range(len(left))):
        waiting[left[index]].append(index)
    pairs, only = [], []
    for index, value in enumerate(right):
        if waiting.get(value):
            pairs.append((waiting[value].pop(), index))
        else:
            only.append(index)
    missing = sorted(index for rest in waiting.values() for index in rest)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), (missing, only)


def _metadata(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    flat = [dict(_flattened({**content, "images": None})) for content in (left, right)]  # images are counted by themselves
    everything = flat[0] | flat[1]
    keys = [key for key in everything if flat[0].get(key, ...) != flat[1].get(key, ...)]
    # an empty dictionary needs no line of its own where the other bank's entries have theirs
    keys = [key for key in keys if everything[key] != {} or not any(other.startswith(f"{key}.") for other in everything)]
    return [{"key": key, "a": flat[0].get(key), "b": flat[1].get(key)} for key in sorted(keys)]


def _flattened(content: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{before}{key}.")
        else:
            yield before + key, value


def _classes(readers: list[BankReader], columns: list[BankColumns]) -> dict[str, list[int]]:
    counts = [
        dict(zip(names, np.bincount(column.labels, minlength=len(names)).tolist(), strict=True))
        for names, column in zip((reader.meta.dataset.classes for reader in readers), columns, strict=True)
    ]
    both = {name: [count.get(name, 0) for count in counts] for name in counts[0] | counts[1]}
    return {name: count for name, count in both.items() if count[0] != count[1]}


def _changed(left: BankColumns, right: BankColumns, pairs: np.ndarray) -> dict[str, Any]:
    at_left, at_right = pairs[:, 0], pairs[:, 1]
    scores = {}
    for name in sorted(set(left.scores) & set(right.scores)):
        apart = np.abs(left.scores[name].numpy()[at_left].astype(float) - right.scores[name].numpy()[at_right])
        if apart.any():
            scores[name] = {"images": int((apart > 0).sum()), "largest": float(apart.max())}
    labels = left.labels.numpy()[at_left] != right.labels.numpy()[at_right]
    parents = left.parents.numpy()[at_left] != right.parents.numpy()[at_right]
    return {"label": pairs[labels].tolist(), "parent": pairs[parents].tolist(), "scores": scores}


def difference_table(result: dict[str, Any]) -> RenderableType:
    """The difference for a terminal."""
    images, changed = result["images"], result["changed"]
    if result["same"]:
        return Text(f"{result['a']} and {result['b']} hold the same: {images['a']:,} images and all that is said of them.")
    facts = Table("", "A", "B")
    facts.add_row("images", f"{images['a']:,}", f"{images['b']:,}")
    facts.add_row("only here", *(_listed(images[name]) for name in ("only_a", "only_b")))
    for name, both in result["classes"].items():
        facts.add_row(f"class {name}", *(f"{count:,}" for count in both))
    for line in result["metadata"]:
        facts.add_row(Text(line["key"]), *(Text(_short(line[side])) for side in ("a", "b")))
    lines = [f"in both: {images['both']:,} images, {len(images['moved']):,} of them at another place"]
    lines += [f"{name} differs: {len(changed[name]):,} images" for name in ("label", "parent") if changed[name]]
    lines += [
        f"{name} differs: {of['images']:,} images, by {of['largest']:.4g} at most" for name, of in changed["scores"].items()
    ]
    lines += [f"scores of {side.upper()} alone: {', '.join(names)}" for side, names in result["scores_only"].items() if names]
    if not result["blocks"]:
        lines.append("divided into other blocks")
    return Group(Text(f"A {result['a']}"), Text(f"B {result['b']}"), facts, *map(Text, lines))


def _listed(indices: list[int]) -> str:
    more = ", …" if len(indices) > SHOWN else ""
    return f"{len(indices):,}" + (f": {', '.join(map(str, indices[:SHOWN]))}{more}" if indices else "")


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
