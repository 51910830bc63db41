"""What is in a bank, in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dfkd.bank.format import BankMeta
from dfkd.bank.lineage import lineage_tree
from dfkd.bank.pixels import is_constant
from dfkd.bank.reader import BankReader


def summarise(path: str | Path) -> dict[str, Any]:
    """Counts, score ranges and origin of a bank, complete or not; JSON-ready.

    `scores` gives min, mean and max of each; `blank` counts images of one single value; `with_parent` those that name a
    parent in the bank they were made from.

    Raises:
        UserError: not a bank, or damaged.
    """
    reader = BankReader(path, allow_incomplete=True)
    meta = reader.meta
    counts = torch.zeros(len(meta.dataset.classes), dtype=torch.int64)
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    sums: dict[str, float] = {}
    blank = with_parent = 0
    for block in reader.blocks():
        counts += torch.bincount(block.labels, minlength=len(counts))
        blank += int(is_constant(block.images).sum())
        if block.parents is not None:
            with_parent += int((block.parents >= 0).sum())
        for name, values in block.scores.items():
            lowest[name] = min(lowest.get(name, float("inf")), values.min().item())
            highest[name] = max(highest.get(name, float("-inf")), values.max().item())
            sums[name] = sums.get(name, 0.0) + values.double().sum().item()
    return {
        "path": str(path),
        "kind": meta.kind,
        "status": meta.status,
        "images": meta.images,
        "blocks": meta.blocks,
        "bytes": Path(path).stat().st_size,
        "shape": list(meta.dataset.shape),
        "dataset": meta.dataset.name,
        "classes": {name: int(count) for name, count in zip(meta.dataset.classes, counts, strict=True)},
        "scores": {name: {"min": lowest[name], "mean": sums[name] / meta.images, "max": highest[name]} for name in sums},
        "blank": blank,
        "with_parent": with_parent,
        "teacher_sha256": meta.teacher_sha256,
        "stage": meta.stage,
        "stage_version": meta.stage_version,
        "seed": meta.seed,
        "settings": meta.settings,
        "lineage": meta.lineage,
        "extra": meta.extra,
    }


def summary_table(summary: dict[str, Any], meta: BankMeta) -> RenderableType:
    """The summary for a terminal, with the lineage as a tree."""
    facts = Table(title=Text(summary["path"]), title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    channels, height, width = summary["shape"]
    for name, value in (
        ("kind", summary["kind"]),
        ("status", summary["status"]),
        ("images", f"{summary['images']:,} of {channels}×{height}×{width} in {summary['blocks']:,} blocks"),
        ("bytes", f"{summary['bytes']:,}"),
        ("blank images", f"{summary['blank']:,}"),
        ("with a parent", f"{summary['with_parent']:,}"),
        ("data set", summary["dataset"]),
        ("teacher", summary["teacher_sha256"]),
        ("made by", f"{summary['stage']} (version {summary['stage_version']}), seed {summary['seed']}"),
        ("settings", _pairs(summary["settings"])),
    ):
        facts.add_row(name, Text(str(value)))
    classes = Table("class", "images", "share")
    for name, count in summary["classes"].items():
        classes.add_row(Text(name), f"{count:,}", f"{count / max(summary['images'], 1):.1%}")
    parts: list[RenderableType] = [facts, lineage_tree(meta), Text(), classes]
    if summary["scores"]:
        scores = Table("score", "min", "mean", "max")
        for name, values in summary["scores"].items():
            scores.add_row(Text(name), *(f"{values[key]:.4g}" for key in ("min", "mean", "max")))
        parts.append(scores)
    return Group(*parts)


def _pairs(content: dict[str, Any], before: str = "") -> str:
    """`key value, …`; what is nested as `key.inner value`."""
    texts = [
        _pairs(value, f"{before}{key}.") if isinstance(value, dict) and value else f"{before}{key} {value}"
        for key, value in content.items()
    ]
    return ", ".join(texts) or "none"
