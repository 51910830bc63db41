"""Where a bank comes from, as a tree: the teacher, what was made with it, the bank itself."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from dfkd.bank.format import BankMeta
from dfkd.bank.stages import stage_name

WORDS = {"stage", "architecture", "sha256", "images", "bank", "where", "kept"}  # of a step; others are printed as they are


def lineage_tree(meta: BankMeta) -> Tree:
    """The steps of `meta.lineage`, oldest at the root, and the bank as its last leaf."""
    steps = meta.lineage or [{"stage": "teacher", "sha256": meta.teacher_sha256}]
    tree = Tree(_step(steps[0]))
    branch = tree
    for step in steps[1:]:
        branch = branch.add(_step(step))
    made = "" if meta.status == "complete" else ", still being written"
    branch.add(Text(f"{meta.stage}: {stage_name(meta)}, {meta.images:,} images{made}", style="bold"))
    return tree


def _step(step: dict[str, Any]) -> Text:
    stage = str(step.get("stage", "bank"))
    parts = [str(step["architecture"])] if "architecture" in step else []
    if stage == "prune":
        parts.append(f"without {step.get('where')}, {step.get('kept'):,} of {step.get('images'):,} images kept")
    elif "images" in step:
        parts.append(f"{step['images']:,} images" + (f" in {step['bank']}.lmdb" if "bank" in step else ""))
    parts += [f"{key} {value}" for key, value in step.items() if key not in WORDS]
    text = Text(": ".join([stage, *([", ".join(parts)] if parts else [])]))
    if "sha256" in step:
        text.append(f"  SHA-256 {str(step['sha256'])[:12]}…", style="dim")
    return text
