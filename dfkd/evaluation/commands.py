"""The commands that make what lies in a folder: from where it lies, and from what its card or bank says of itself.

Artefacts hold no paths. In the workflow's layout the paths follow from the folder's; elsewhere words in capitals stand for
them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.config import parse, settings_of
from dfkd.methods import METHODS, transfer_set

NAME = "[a-z0-9]+"
LAYOUT = (
    rf"runs/(?P<method>[a-z0-9-]+)/(?P<dataset>{NAME})_(?P<teacher>{NAME})_(?P<student>{NAME})/seed(?P<seed>\d+)",
    rf"runs/(?P<method>scratch)/(?P<dataset>{NAME})_(?P<student>{NAME})/seed(?P<seed>\d+)",
    rf"(?P<kind>teachers|banks)/(?P<dataset>{NAME})_(?P<teacher>{NAME})",
)


@dataclass(frozen=True)
class Place:
    """A folder of the workflow's layout. What it does not name is empty."""

    kind: str  # runs, teachers, banks
    dataset: str
    teacher: str = ""
    student: str = ""
    method: str = ""
    seed: int = 0

    @property
    def pair(self) -> str:
        """`dataset_teacher_student`, of those that are named."""
        return "_".join(name for name in (self.dataset, self.teacher, self.student) if name)

    @property
    def folder(self) -> str:
        """Where it lies, from the project's folder."""
        if self.kind != "runs":
            return f"results/{self.kind}/{self.pair}"
        return f"results/runs/{self.method}/{self.pair}/seed{self.seed}"

    @property
    def checkpoints(self) -> str:
        """Where the state of its stage is kept between attempts; of a bank's folder, that of `augment`."""
        if self.kind != "runs":
            return f"results/checkpoints/{'teacher' if self.kind == 'teachers' else 'augment'}/{self.pair}"
        stage = "scratch" if self.method == "scratch" else f"distill/{self.method}"
        return f"results/checkpoints/{stage}/{self.pair}_seed{self.seed}"


def place_of(folder: Path) -> Place | None:
    """What a folder is by the workflow's layout; None for one that lies elsewhere."""
    path = folder.resolve().as_posix()
    for pattern in LAYOUT:
        if found := re.search(rf"/{pattern}$", path):
            names = {"kind": "runs"} | found.groupdict()
            return Place(**names | ({"seed": int(names["seed"])} if "seed" in names else {}))  # type: ignore[arg-type]
    return None


def target_command(place: Place, file: str) -> str:
    """Snakemake's command for a file of the folder."""
    return f"snakemake --cores all {place.folder}/{file}"


def weights_command(place: Place | None, card: Mapping[str, Any], teacher: str, file: str) -> str | None:
    """The stage's own command for the weights `file` of a folder; None for a method or settings that are not known here.

    Args:
        card: the card of the weights, as JSON.
        teacher: the teacher's architecture; empty for a teacher or a student from scratch.
    """
    dataset = card["dataset"]["name"]
    if not card["stage"].startswith("distill "):
        return shlex.join(_training(place, card, dataset, file))
    method = card["stage"].removeprefix("distill ")
    if method not in METHODS:
        return None
    results = "results" if place else None
    source = f"{results}/teachers/{dataset}_{teacher}/weights.safetensors" if results else "TEACHER.safetensors"
    kind, value = transfer_set(method, parse(settings_of("distill", method), card["settings"], "card"))  # type: ignore[arg-type]
    images = []
    for name in card["lineage"]:
        if name.startswith("bank "):
            stem = name.removeprefix("bank ")
            foreign = kind == "bank" and value not in ("init", "variations")
            path = value if foreign else f"{results}/banks/{dataset}_{teacher}/{stem}.lmdb" if results else f"{stem}.lmdb"
            images += ["--bank", path]
    images += _packed(card)
    if "data" in card["lineage"]:
        images += ["--data", {"train": f"data/{dataset}.h5", "dataset": f"data/{value}.h5"}.get(kind, value)]
    if "first stage" in card["lineage"]:
        images += ["--first-stage", f"{place.folder}/first_stage.safetensors" if place else "FIRST_STAGE.safetensors"]
    words = ["dfkd", "distill", "--teacher", source, *images, "--method", method, "--student", card["architecture"]]
    words += ["--seed", str(card["seed"]), "--test", f"data/{dataset}.test.h5" if place else "TEST.h5"]
    return shlex.join([*words, "--settings", canonical(card["settings"]), *_ends(place, file)])


def _packed(card: Mapping[str, Any]) -> list[str]:
    """The option that names the packed file of the training images, by its name alone; none if they were in no such file."""
    files = [name.removeprefix("packed ") for name in card["lineage"] if name.startswith("packed ")]
    return [word for file in files for word in ("--packed", file)]


def _training(place: Place | None, card: Mapping[str, Any], dataset: str, file: str) -> list[str]:
    """The words that train a network on real images, or import one."""
    if imported := card["settings"].get("imported"):
        words = ["dfkd", "teacher", "import", imported, "--model", card["architecture"], "--dataset", dataset]
        return [*words, "--test", f"data/{dataset}.test.h5" if place else "TEST.h5", *_ends(place, file)[-2:]]
    words = ["dfkd", "teacher", "train", "--data", f"data/{dataset}.h5" if place else "DATA.h5", *_packed(card)]
    return [*words, "--model", card["architecture"], "--settings", canonical(card["settings"]), *_ends(place, file)]


def bank_command(place: Place | None, stage: str, settings: Mapping[str, Any]) -> str:
    """The stage's own command for a teacher's bank: `init-bank` in one shard, or `augment`."""
    folder = f"{place.folder}/" if place else ""
    teacher = f"results/teachers/{place.pair}/weights.safetensors" if place else "TEACHER.safetensors"
    words = ["dfkd", stage, "--teacher", teacher]
    if stage == "init-bank":
        words += ["--settings", canonical(settings), "-o", f"{folder}init.lmdb"]
        return shlex.join(words)
    words += ["--bank", f"{folder}init.lmdb", "--settings", canonical(settings), *_ends(place, "variations.lmdb")]
    return shlex.join([*words, "--rejected", f"{folder}rejected.lmdb", "--plot", f"{folder}filter.png"])


def _ends(place: Place | None, file: str) -> list[str]:
    return ["--checkpoints", place.checkpoints, "-o", f"{place.folder}/{file}"] if place else ["-o", file]


def canonical(settings: Mapping[str, Any]) -> str:
    """Settings as the workflow passes them to a stage."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))
