"""200 commands on spoilt input, drawn by a seed: each a file of the world, what happens to it, and the words that meet it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from world import (
    dangling,
    empty,
    flip,
    flip_head,
    folder_instead,
    noise,
    remove,
    spoil_json,
    spoil_yaml,
    text,
    truncate,
)  # fmt: skip

Damage = Callable[[Path, Random], None]
ANY: list[Damage] = [truncate, empty, noise, text, folder_instead, remove, dangling]
CHECKED = [*ANY, flip]  # files that carry a checksum of all their bytes
RUN = "runs/dda/bars_wrn101_wrn101/seed0"
SMALL = ["--set", "precision=reference"]

# Which file, what may befall it, and the commands that read it.
READERS: list[tuple[str, list[Damage], list[list[str]]]] = [
    (
        "teacher/weights.safetensors",
        CHECKED,
        [
            ["init-bank", "--teacher", "teacher/weights.safetensors", "--checkpoints", "state", "-o", "out/init.lmdb", *SMALL],
            ["evaluate", f"{RUN}/student.safetensors", "--teacher", "teacher/weights.safetensors",
             "--test", "bars.test.h5", "-o", "out/evaluation"],
        ],
    ),
    (
        "teacher/weights.json",
        [*ANY, spoil_json, spoil_json],
        [
            ["init-bank", "--teacher", "teacher/weights.safetensors", "--checkpoints", "state", "-o", "out/init.lmdb", *SMALL],
            ["bank", "import", "pictures", "--teacher", "teacher/weights.safetensors", "-o", "out/init.lmdb"],
        ],
    ),
    (
        "init.lmdb",
        CHECKED,
        [["bank", "verify", "init.lmdb"]],
    ),
    (
        "init.lmdb",
        [truncate, empty, noise, text, folder_instead, remove, dangling],
        [
            ["bank", "info", "init.lmdb"],
            ["bank", "grid", "init.lmdb", "-o", "out/grid.png"],
            ["bank", "export", "init.lmdb", "-o", "out/folder"],
            ["bank", "score", "init.lmdb", "--teacher", "teacher/weights.safetensors", "-o", "out/s.h5"],
            ["distill", "--teacher", "teacher/weights.safetensors", "--bank", "init.lmdb", "--student", "wrn101",
             "--test", "bars.test.h5", "--checkpoints", "state", "-o", "out/student.safetensors", *SMALL],
            ["augment", "--teacher", "teacher/weights.safetensors", "--bank", "init.lmdb", "--rejected", "out/r.lmdb",
             "--plot", "out/p.png", "--checkpoints", "state", "-o", "out/v.lmdb", *SMALL, "--set", "backend=none"],
        ],
    ),
    (
        "bars.h5",
        [*ANY, flip_head],
        [["teacher", "train", "--data", "bars.h5", "--model", "wrn101", "--checkpoints", "state", "-o", "out/t.safetensors",
          *SMALL]],
    ),
    (
        "bars.test.h5",
        [*ANY, flip_head],
        [
            ["evaluate", f"{RUN}/student.safetensors", "--teacher", "teacher/weights.safetensors",
             "--test", "bars.test.h5", "-o", "out/evaluation"],
            ["distill", "--teacher", "teacher/weights.safetensors", "--bank", "init.lmdb", "--student", "wrn101",
             "--test", "bars.test.h5", "--checkpoints", "state", "-o", "out/student.safetensors", *SMALL],
        ],
    ),
    (
        f"{RUN}/student.safetensors",
        CHECKED,
        [["evaluate", f"{RUN}/student.safetensors", "--teacher", "teacher/weights.safetensors",
          "--test", "bars.test.h5", "-o", "out/evaluation"]],
    ),
    (
        f"{RUN}/metrics.json",
        [*ANY, spoil_json, spoil_json],
        [
            ["plot", "confusion", f"{RUN}/metrics.json", "-o", "out/c.png"],
            ["result", "--dataset", "bars", "--teacher", "wrn101", "--student", "wrn101", "--metrics", f"{RUN}/metrics.json",
             "--config-hash", "0", "-o", "out/result.json"],
        ],
    ),
    (
        f"{RUN}/history.csv",
        [empty, noise, text, folder_instead, remove, dangling],
        [["plot", "curves", f"{RUN}/history.csv", "-o", "out/curves.png"]],
    ),
    (f"{RUN}/predictions.h5", [*ANY, flip_head], [["compare", "result.json", "--runs", "runs", "-o", "out/compare.html"]]),
    (
        "result.json",
        [*ANY, spoil_json, spoil_json],
        [["show", "result.json"], ["compare", "result.json", "--runs", "runs", "-o", "out/c.html"]],
    ),
    (
        "images/train/cat/1.png",
        [truncate, empty, noise, text, dangling],
        [["prepare", "mine", "--set", "source=folder:images", "--set", "channels=1", "--set", "image_size=8",
          "-o", "out/mine.h5", "--test-output", "out/mine.test.h5", "--settings", "{}"]],
    ),
    ("pictures/1/image.png", [truncate, empty, noise, text, folder_instead, dangling],
     [["bank", "import", "pictures", "--teacher", "teacher/weights.safetensors", "-o", "out/b.lmdb"]]),
    (
        "bars.h5",
        [*ANY, flip_head],
        [["prepare", "mine", "--set", "source=hdf5:bars.h5", "--set", "channels=1", "--set", "image_size=8", "--settings", "{}",
          "-o", "out/d.h5", "--test-output", "out/d.test.h5"]],
    ),
    ("config/config.yaml", [spoil_yaml], [["settings", "distill", "digits_wrn162_wrn161"]]),
    ("config/datasets.yaml", [spoil_yaml], [["settings", "distill", "digits_wrn162_wrn161"]]),
    ("config/methods/dda.yaml", [spoil_yaml], [["settings", "distill", "digits_wrn162_wrn161"]]),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`damage` to `file` by the seed, then `dfkd WORDS`."""

    number: int
    file: str
    damage: Damage
    words: list[str]

    def __str__(self) -> str:
        return f"{self.number}: {self.damage.__name__} {self.file}; dfkd {' '.join(self.words)}"

    @property
    def random(self) -> Random:
        return Random(f"malformed {self.number}")


def draw(count: int, seed: int = 0) -> list[Case]:
    """`count` cases; every pair of reader and damage comes about equally often."""
    pairs = [(file, damage, words) for file, damages, commands in READERS for damage in damages for words in commands]
    random = Random(seed)
    order: list[tuple[str, Damage, list[str]]] = []
    while len(order) < count:
        random.shuffle(pairs)
        order += pairs
    return [Case(number, *pair) for number, pair in enumerate(order[:count])]
