"""Where a bank comes from, as a tree: the teacher, what was made with it, the bank itself."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from dfkd.bank.format import BankMeta
from dfkd.bank.stages import stage_name

KNOWN = {"stage", "architecture", "sha256", "images", "bank"}  # of a step; anything else is printed as it is


def lineage_tree(meta: BankMeta) -> Tree:
    """The steps of `meta.lineage`, oldest at the root, and the bank as its last leaf.

    A pruning follows the stage whose images it left out; in the lineage it stands before the bank that it gave.
    """
    growing = "" if meta.status == "complete" else ", still being written"
    own = {"stage": meta.stage, "images": meta.images, "words": f"{stage_name(meta)}, ", "more": growing}
    steps = meta.lineage or [{"stage": "teacher", "sha256": meta.teacher_sha256}]
    texts: list[Text] = []
    prunings: list[dict[str, Any]] = []
    for step in [*steps, own]:
        if step.get("stage") == "prune":
            prunings.append(step)
            continue
        made = step if not prunings else {**step, "images": prunings[0]["images"], "sha256": prunings[0]["sha256"]}
        texts += [_step(made), *map(_pruning, prunings)]
        prunings = []
    texts[-1].stylize("bold")
    tree = Tree(texts[0])
    branch = tree
    for text in texts[1:]:
        branch = branch.add(text)
    return tree


def _step(step: dict[str, Any]) -> Text:
    parts = [str(step["architecture"])] if "architecture" in step else []
    if "images" in step:
        where = f" in {step['bank']}.lmdb" if "bank" in step else ""
        parts.append(f"{step.get('words', '')}{step['images']:,} images{where}{step.get('more', '')}")
    parts += [f"{key} {value}" for key, value in step.items() if key not in KNOWN | {"words", "more"}]
    text = Text(": ".join([str(step.get("stage", "bank")), *([", ".join(parts)] if parts else [])]))
    if "sha256" in step:
        text.append(f"  SHA-256 {str(step['sha256'])[:12]}…", style="dim")
    return text


def _pruning(step: dict[str, Any]) -> Text:
    return Text(f"prune: without '{step['where']}', {step['kept']:,} of {step['images']:,} images")
