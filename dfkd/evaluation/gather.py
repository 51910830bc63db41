"""The result files below a folder, in groups that can be compared: one data set, teacher and student."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfkd.errors import UserError, nearest
from dfkd.evaluation.compare import Row, best_of, correct_of, pair_of, table
from dfkd.evaluation.formats import ResultFile, read_result
from dfkd.evaluation.noise import FEWEST_SEEDS, Flags
from dfkd.evaluation.show import root_of

# Folders of `results` that hold no result files but thousands of others, and the campaigns', which are asked for by name.
SKIPPED = ("teachers", "banks", "runs", "checkpoints", "caches", "benchmarks", "compare", "campaigns")


@dataclass(frozen=True)
class Found:
    """A result and the file that it stands in."""

    path: Path
    result: ResultFile


@dataclass(frozen=True)
class Fault:
    """A file that holds no result, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Entry:
    """A line of a group's table."""

    found: Found
    row: Row
    best: bool  # the others are held against it
    ambiguous: bool  # the group holds several results of this method: only the file tells them apart


@dataclass(frozen=True)
class Group:
    """The results of one data set and pair, by falling Acc@1, and students from scratch of the same kind."""

    dataset: str
    pair: str  # as in a target: teacher_student
    teacher_sha256: str  # "" where the results do not say
    entries: list[Entry]
    images: int | None  # of the test split
    note: str  # what must be known to compare them; empty for most
    one_of_several: bool = False  # another group is of the same pair: their teachers have other weights

    @property
    def first(self) -> ResultFile:
        """A result with the group's teacher, if any has one."""
        return max((entry.found.result for entry in self.entries), key=lambda result: result.teacher is not None)


def find_results(places: Sequence[Path]) -> tuple[list[Found], list[Fault]]:
    """The results in these files and below these folders, each once, and the JSON files that hold none.

    The default method's result stands under two names; the one in its method's folder is given.

    Raises:
        UserError: a place does not exist, or no result can be read.
    """
    found, faults = list[Found](), list[Fault]()
    for path in _candidates(places):
        try:
            found.append(Found(path, read_result(path)))
        except (UserError, OSError) as error:
            faults.append(Fault(path, str(error).removeprefix(f"{path}: ")))
    if not found:
        where = ", ".join(map(str, places))
        first = f"; {faults[0].path}: {faults[0].reason}" if faults else ""
        raise UserError(f"{where}: no result file that can be read{first or '; make one with snakemake, or name its folder.'}")
    kept: list[Found] = []
    for one in sorted(found, key=lambda item: item.path.parent.name != item.result.method):
        if all(one.result != other.result for other in kept):
            kept.append(one)
    return kept, faults


def _candidates(places: Sequence[Path]) -> list[Path]:
    """The JSON files that may be results, each once."""
    paths: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder; name where the results are.")
        for path in sorted(_below(place)) if place.is_dir() else [place]:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _below(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        yield from (Path(place) / name for name in names if name.endswith(".json") and not name.startswith("."))


def select(
    found: Sequence[Found], datasets: Sequence[str] = (), methods: Sequence[str] = (), pairs: Sequence[str] = ()
) -> list[Found]:
    """The results of these data sets, methods and pairs (`wrn402_wrn161`); none named is all.

    Raises:
        UserError: a name occurs in no result, or no result has them together.
    """
    known = [{item.result.dataset for item in found}, {item.result.method for item in found}]
    known.append({pair_of(item.result) for item in found if item.result.teacher is not None})
    for words, what, there in zip((datasets, methods, pairs), ("data set", "method", "pair"), known, strict=True):
        for word in words:
            if word not in there:
                raise UserError(f"no result of {what} '{word}'; {nearest(word, there)}.")
    kept = [
        item
        for item in found
        if (not datasets or item.result.dataset in datasets)
        and (not methods or item.result.method in methods)
        and (not pairs or any(_is_of(item.result, pair) for pair in pairs))
    ]
    if not kept:
        raise UserError("no result has this data set, method and pair together; leave one of the filters away.")
    return kept


def _is_of(result: ResultFile, pair: str) -> bool:
    """Whether a result is of this pair; a student from scratch stands beside all that share its architecture."""
    return pair_of(result) == pair if result.teacher else pair.split("_")[-1] == result.student.name


def group_results(found: Sequence[Found]) -> list[Group]:
    """The groups by data set and pair. A student from scratch joins the groups of its data set and architecture.

    Results of one pair whose teachers have other weights are groups of their own: their students were taught differently.
    """
    taught: dict[tuple[str, str, str], list[Found]] = {}
    alone: list[Found] = []
    for item in found:
        result = item.result
        if result.teacher is None:
            alone.append(item)
        else:
            key = (result.dataset, pair_of(result), result.provenance.artefacts.get("teacher", ""))
            taught.setdefault(key, []).append(item)
    pairs = list(taught)
    for item in alone:
        result = item.result
        fitting = [key for key in pairs if key[0] == result.dataset and _is_of(result, key[1])]
        for key in fitting or [(result.dataset, pair_of(result), "")]:
            taught.setdefault(key, []).append(item)
    targets = [key[:2] for key in taught]
    return [replace(_group(*key, items), one_of_several=targets.count(key[:2]) > 1) for key, items in sorted(taught.items())]


def _group(dataset: str, pair: str, teacher_sha256: str, items: Sequence[Found]) -> Group:
    results = [item.result for item in items]
    sizes = {size for result in results if (size := test_images(result)) is not None}
    note = ""
    if len(sizes) > 1:
        note = f"measured on test splits of different sizes ({', '.join(map(str, sorted(sizes)))}): not comparable"
    images = sizes.pop() if len(sizes) == 1 else None
    best = best_of(results)
    rows = table(results, read_known(items, best), images)
    methods = [result.method for result in results]
    order = sorted(range(len(items)), key=lambda index: (-results[index].acc1.mean, results[index].method))  # as in `table`
    entries = [
        Entry(items[index], row, index == best, methods.count(row.method) > 1) for index, row in zip(order, rows, strict=True)
    ]
    return Group(dataset, pair, teacher_sha256, entries, images, note)


def test_images(result: ResultFile) -> int | None:
    """Images of the test split; older files say it by what the teacher classified to evaluate one student."""
    if result.test_images is not None:
        return result.test_images
    evaluated = result.cost.get("evaluate")
    queries = 0 if evaluated is None or evaluated.per_seed is None else evaluated.per_seed.teacher_queries
    return round(queries) or None


def read_known(items: Sequence[Found], best: int) -> list[Flags | None]:
    """What each seed's student has right, for the bootstrap against the best.

    None for a result with too few seeds, without the predictions that it was made of, or of another test split than the best.
    """
    found = [_correct(item) for item in items]
    reference = found[best]
    if reference is None:
        return [None] * len(items)
    return [own[0] if own is not None and np.array_equal(own[1], reference[1]) else None for own in found]


def _correct(item: Found) -> tuple[Flags, np.ndarray] | None:
    if len(item.result.seeds) < FEWEST_SEEDS:
        return None
    try:
        return correct_of(item.result, root_of(item.path) / "runs")
    except UserError:  # moved without its runs, or these were made again since
        return None
