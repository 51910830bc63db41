"""The checkpoints that are evaluated: this project's weights with their card, or state dicts trained elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dfkd.config import STAGE_VERSIONS, check_dataset, check_model, load_config
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.models import count_macs, count_parameters
from dfkd.models.weights import WeightsCard, import_checkpoint, load_model, read_card
from dfkd.runtime import Runtime


@dataclass(frozen=True)
class Checkpoint:
    """A network that was read from a file: in eval mode, its parameters frozen, placed by a runtime."""

    path: Path
    model: nn.Module
    card: WeightsCard  # of a network trained elsewhere: made up of what the file and the test split say
    macs: int  # multiply-adds for one image


@dataclass(frozen=True)
class Architectures:
    """What `--model` said: the architecture of all checkpoints without a card, and of single ones."""

    every: str | None = None
    of_path: Mapping[Path, str] | None = None

    @classmethod
    def parse(cls, texts: Sequence[str], paths: Sequence[Path]) -> Architectures:
        """Of texts `ARCH` and `CHECKPOINT:ARCH`, where the checkpoints are among `paths`.

        Raises:
            UserError: an unknown architecture or checkpoint, or more than one for all.
        """
        single: dict[Path, str] = {}
        every = None
        for text in texts:
            path, sign, name = text.rpartition(":")
            if sign and Path(path) not in paths:
                known = ", ".join(map(str, paths))
                raise UserError(f"--model {text}: {path} is none of the checkpoints ({known}); write it as there.")
            if not sign and every not in (None, name):
                raise UserError(f"--model {text}: {every} was given too; write CHECKPOINT:ARCH where they differ.")
            if sign:
                single[Path(path)] = check_model(name)
            else:
                every = check_model(name)
        return cls(every, single)

    def named(self, path: Path) -> str | None:
        """The architecture that was given for this checkpoint alone."""
        return (self.of_path or {}).get(path)


def has_card(path: Path) -> bool:
    """Whether the weights are this project's: a .safetensors with a .json beside it."""
    return path.suffix == ".safetensors" and path.with_suffix(".json").is_file()


def open_checkpoint(path: Path, architectures: Architectures, info: DatasetInfo, runtime: Runtime) -> Checkpoint:
    """Read a checkpoint for the data set `info`.

    One with a card is what that says, unless `architectures` names another for it alone: then it is read as a bare state dict.

    Raises:
        UserError: it cannot be read, does not fit its architecture or the data set, or nothing says what its architecture is.
    """
    if has_card(path) and architectures.named(path) is None:
        model, card = load_model(path, runtime)
        return Checkpoint(path, model, card, count_macs(model, card.dataset.shape))
    if not path.is_file():
        raise UserError(f"{path}: no such file; give weights of this project (.safetensors) or a state dict (.pth, .pt).")
    architecture = architectures.named(path) or architectures.every
    if architecture is None:
        raise UserError(f"{path}: has no card that names its architecture; add --model ARCH, such as --model resnet34.")
    model = runtime.place(import_checkpoint(path, architecture, info).eval().requires_grad_(False))
    card = WeightsCard(
        architecture=architecture,
        dataset=info,
        role="teacher",
        stage="teacher",
        stage_version=STAGE_VERSIONS["teacher"],
        settings={"imported": path.name},
        seed=0,
        params=count_parameters(model),
        sha256=file_sha256(path),
    )
    return Checkpoint(path, model, card, count_macs(model, info.shape))


def find_test(test: Path | None, dataset: str | None, paths: Sequence[Path], config: Path) -> Path:
    """The prepared test split to measure on: `test`, or that of `dataset`, or of the data set that the first card names.

    Raises:
        UserError: it is absent (the sentence says how to make it), or nothing names it.
    """
    if test is not None:
        if dataset is not None:
            raise UserError(f"--dataset {dataset} and --test {test}: give one of them.")
        return test
    if dataset is None:
        with_card = next((path for path in paths if has_card(path)), None)
        if with_card is None:
            raise UserError(
                "evaluate: no card names the data set; add --dataset NAME, such as --dataset cifar10, or --test FILE."
            )
        dataset = read_card(with_card).dataset.name
    found = Path(f"data/{dataset}.test.h5")
    if not found.is_file():
        check_dataset(dataset, load_config(config))
        raise UserError(
            f"{found}: no such file; make it with `dfkd prepare {dataset} -o data/{dataset}.h5 --test-output {found}`, "
            "or name a prepared file with --test."
        )
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each checkpoint: its file's, or, where files are called alike, the part of the path in which they differ.

    Raises:
        UserError: a checkpoint is given twice.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path, place in zip(paths, whole, strict=True) if whole.count(place) > 1)
        raise UserError(f"evaluate: {twice} is given twice.")
    names = [_distinct(path, [other for other in whole if other.stem == path.stem]) for path in whole]
    return names if len(set(names)) == len(names) else [_distinct(path, whole) for path in whole]


def _distinct(path: Path, others: Sequence[Path]) -> str:
    """What tells a path from the others, of which it is one; its stem if it is the only one."""
    if len(others) == 1:
        return path.stem
    parts = {other: other.with_suffix("").parts for other in others}
    if len(set(parts.values())) < len(parts):
        parts = {other: other.parts for other in others}
    while len({row[0] for row in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {other: row[1:] for other, row in parts.items()}
    while len({row[-1] for row in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {other: row[:-1] for other, row in parts.items()}
    return "/".join(parts[path])


def check_together(teacher: Checkpoint | None, student: Checkpoint, best: Checkpoint | None) -> None:
    """Refuse a student of another data set or teacher, and a best epoch of another run, each with a `UserError`."""
    for role, one in (("student", student), ("best", best)):
        if one is None:
            continue
        if teacher is not None:
            fault = difference(one.card.dataset, teacher.card.dataset)
            if fault:
                raise UserError(
                    f"{one.path}: {role} and teacher {teacher.path} do not fit together: {fault}; give a pair of one data set."
                )
            named = one.card.lineage.get("teacher", teacher.card.sha256)
            if named != teacher.card.sha256:
                raise UserError(
                    f"{one.path}: distilled from a teacher with SHA-256 {named[:12]}…, but {teacher.path} has "
                    f"{teacher.card.sha256[:12]}…; give the teacher that it was distilled from."
                )
        if (one.card.architecture, one.card.seed) != (student.card.architecture, student.card.seed):
            raise UserError(
                f"{one.path}: {one.card.architecture} of seed {one.card.seed}, not of the same run as {student.path}."
            )


def check_test(info: DatasetInfo, test: Path, one: Checkpoint) -> None:
    """Refuse a test split that is not of the data set that a checkpoint was made for."""
    fault = difference(info, one.card.dataset)
    if fault:
        raise UserError(f"{test}: not the test split of {one.path}: {fault}; give the data set that it was trained on.")


def difference(given: DatasetInfo, wanted: DatasetInfo) -> str:
    """In words, the first thing that keeps images of one from being images of the other; empty if nothing does."""
    for key, what in (("name", "data set"), ("channels", "channels"), ("image_size", "image size")):
        if getattr(given, key) != getattr(wanted, key):
            return f"{what} {getattr(given, key)} against {getattr(wanted, key)}"
    if len(given.classes) != len(wanted.classes):
        return f"{len(given.classes)} classes against {len(wanted.classes)}"
    return "" if given.classes == wanted.classes else "the classes have other names or another order"
