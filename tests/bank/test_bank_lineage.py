from __future__ import annotations

import io

from rich.console import Console

from dfkd.bank.lineage import lineage_tree


def lines_of(meta):
    console = Console(file=io.StringIO(), width=150)
    console.print(lineage_tree(meta))
    return console.file.getvalue().splitlines()


def test_the_way_from_the_teacher_to_a_run(banks):
    lineage = [
        {"stage": "teacher", "architecture": "wrn162", "sha256": "cd" * 32},
        {"stage": "prune", "where": "label == 3", "images": 1000, "kept": 900, "sha256": "ef" * 32},
        {"stage": "init-bank", "images": 900, "sha256": "01" * 32},
        {"stage": "augment", "bank": "variations", "images": 1913},
    ]
    extra = {"method": "dda", "student": "wrn161"}
    lines = lines_of(banks.meta(kind="run", stage="distill", lineage=lineage, extra=extra, images=832, status="complete"))
    assert lines == [
        "teacher: wrn162  SHA-256 cdcdcdcdcdcd…",
        "└── init-bank: 1,000 images  SHA-256 efefefefefef…",
        "    └── prune: without 'label == 3', 900 of 1,000 images",
        "        └── augment: 1,913 images in variations.lmdb",
        "            └── distill: run dda (wrn161), 832 images",
    ]


def test_a_pruned_bank_is_the_last_leaf(banks):
    step = {"stage": "prune", "where": "entropy > 1", "images": 50, "kept": 40, "sha256": "ef" * 32}
    again = {"stage": "prune", "where": "constant == 1", "images": 40, "kept": 39, "sha256": "01" * 32}
    lineage = [{"stage": "teacher"}, step, again]
    assert lines_of(banks.meta(lineage=lineage, images=39, status="complete")) == [
        "teacher",
        "└── init-bank: init, 50 images  SHA-256 efefefefefef…",
        "    └── prune: without 'entropy > 1', 40 of 50 images",
        "        └── prune: without 'constant == 1', 39 of 40 images",
    ]


def test_a_bank_that_says_nothing_of_its_past(banks):
    assert lines_of(banks.meta()) == [
        "teacher  SHA-256 abababababab…",
        "└── init-bank: init, 0 images, still being written",
    ]
