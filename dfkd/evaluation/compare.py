"""Methods on one data set and pair as a table, and which of their differences are more than noise.

Noise is estimated by a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993): test images are drawn
with replacement, the same for all methods, and so are each method's seeds. docs/comparison.md says how to read it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dfkd.errors import UserError
from dfkd.evaluation.formats import ResultFile, Statistic, TeacherSummary, read_result
from dfkd.evaluation.predict import read_predictions
from dfkd.evaluation.show import PUBLISHED_METRICS
from dfkd.files import atomic_path

CONTROLS = ("real", "noise")  # there to be compared with; none of them can be the best
METHOD_STAGES = ("init-bank", "augment", "distill")  # what a method takes below the teacher; measuring it is left out
FEWEST_SEEDS = 3  # from which on noise is estimated
SAMPLES = 10_000
LEVEL = 0.95
CHUNK = 256  # bootstrap samples whose weights are in memory at a time

# Our name -> the names under which the sources print what its settings reproduce; the first that has a figure counts.
PUBLISHED_NAMES: dict[str, tuple[str, ...]] = {
    "cmi": ("CMI-scratch", "CMI"),
    "cmi-adversarial": ("CMI-adversarial(preinverted)", "CMI", "CMI-500"),
    "cmi-nonadversarial": ("CMI-nonadversarial(preinverted)",),
    "deepinv": ("DeepInv", "DeepInv-2k"),
    "adi": ("ADI", "DeepInv"),
    "dafl": ("DAFL",),
    "zskt": ("ZSKT",),
    "dfad": ("DFAD",),
    "dfq": ("DFQ",),
    "fastmeta": ("Fast-2",),
    "cudfkd": ("CuDFKD",),
    "adadfkd": ("AdaDFKD(G)", "AdaDFKD"),
    "real": ("KD", "KD-ORI"),
    "noise": ("RANDOM",),
}
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A difference of Acc@1 in percentage points, and where its bootstrap puts it."""

    difference: float
    low: float
    high: float

    @property
    def exceeds_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One method. Figures are the last epoch's, costs those of one student; percent and percentage points."""

    method: str
    control: bool
    data_free: bool
    seeds: int
    acc1: float
    acc1_std: float | None
    best_acc1: float | None  # of the epoch chosen on the test split
    best_acc1_std: float | None
    agree1: float
    agree1_std: float | None
    lp: float
    lp_std: float | None
    seconds: float
    images: float
    teacher_queries: float
    published: float | None
    published_source: str
    last_minus_published: float | None
    best_minus_published: float | None
    to_best: float  # Acc@1 minus that of the best data-free method
    to_best_low: float | None  # null with too few seeds, and for the best itself
    to_best_high: float | None
    exceeds_noise: bool | None


def read_results(paths: Sequence[Path]) -> list[ResultFile]:
    """Result files of one data set, pair and teacher, each of another method.

    Raises:
        UserError: none is given, one is broken or of another target, or a method occurs twice.
    """
    if not paths:
        raise UserError("compare: no result file given; name at least one, such as results/dda/cifar10_wrn402_wrn161.json.")
    results = [read_result(path) for path in paths]
    first, seen = results[0], dict[str, Path]()
    for result, path in zip(results, paths, strict=True):
        if _target(result) != _target(first):
            raise UserError(
                f"{path}: of {_target(result)}, not of {_target(first)} as {paths[0]}; compare results of one target."
            )
        if result.provenance.artefacts.get("teacher") != first.provenance.artefacts.get("teacher"):
            raise UserError(
                f"{path}: its teacher has other weights than that of {paths[0]}; make both results from one teacher."
            )
        if result.method in seen:
            raise UserError(f"{path}: method {result.method} is already in {seen[result.method]}; give each method once.")
        seen[result.method] = path
    return results


def run_folders(result: ResultFile, runs: Path) -> list[Path]:
    """The folder of each seed's run, below `results/runs`."""
    folder = runs / result.method / _target(result)
    return [folder / f"seed{seed}" for seed in result.seeds]


def read_correct(results: Sequence[ResultFile], runs: Path) -> list[Flags]:
    """For each method, which test images each seed's student has right: bool [seeds, images], images in one order.

    Raises:
        UserError: predictions are absent, of another test split, or not those that the result was made of.
    """
    gathered, labels = [], None
    for result in results:
        rows = []
        for folder, accuracy in zip(run_folders(result, runs), result.acc1.per_seed, strict=True):
            path = folder / "predictions.h5"
            predictions = read_predictions(path)
            if "student" not in predictions.logits:
                raise UserError(f"{path}: holds no logits of a student; make it again with `dfkd evaluate`.")
            labels = predictions.labels if labels is None else labels
            if not np.array_equal(labels.numpy(), predictions.labels.numpy()):
                raise UserError(f"{path}: of another test split than the others; evaluate all methods on one.")
            right = (predictions.logits["student"].argmax(1) == labels).numpy()
            if abs(100 * right.mean() - accuracy) > 1e-3:
                raise UserError(
                    f"{path}: its Acc@1 is {100 * right.mean():.2f} %, the result's {accuracy:.2f} %; make the result again."
                )
            rows.append(right)
        gathered.append(np.stack(rows))
    return gathered


def bootstrap_differences(
    correct: Sequence[Flags], reference: int, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Interval]:
    """Acc@1 of each method minus that of method `reference`, with percentile intervals of a paired bootstrap.

    A sample draws the test images with replacement, the same for all methods, and for each method as many of its seeds as it
    has, with replacement too. Everything is float64, and a function of the arguments alone.

    Args:
        correct: for each method bool [seeds, images]; seeds may differ in number, images may not.
        reference: index of the method that the others are compared with; its own interval is [0, 0].
        samples: of the bootstrap.
        level: of the interval, each method on its own.

    Returns:
        One interval per method, in percentage points.
    """
    counts = [len(flags) for flags in correct]
    images = correct[0].shape[1]
    every = np.concatenate(correct).astype(np.float64).T  # [images, all seeds of all methods]
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    generator = np.random.default_rng(seed)
    drawn = np.empty((samples, len(correct)), dtype=np.float64)
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        choices = generator.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        weights = np.bincount(choices.ravel(), minlength=size * images).reshape(size, images)
        right = weights.astype(np.float64) @ every  # whole numbers: exact, so that equal methods do not differ by rounding
        for method, (part, count) in enumerate(zip(parts, counts, strict=True)):
            seeds = generator.multinomial(count, np.full(count, 1 / count), size=size)
            drawn[start : start + size, method] = 100 * (right[:, part] * seeds).sum(1) / (count * images)
    differences = drawn - drawn[:, [reference]]
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail], axis=0)
    means = np.array([100 * flags.sum() / flags.size for flags in correct])
    return [
        Interval(float(mean), float(lower), float(upper))
        for mean, lower, upper in zip(means - means[reference], low, high, strict=True)
    ]


def table(results: Sequence[ResultFile], correct: Sequence[Flags]) -> list[Row]:
    """The rows by falling Acc@1. The best is the first that is no control; if all are, the first.

    Args:
        results: of one target.
        correct: what `read_correct` gives for them.
    """
    order = sorted(range(len(results)), key=lambda index: (-results[index].acc1.mean, results[index].method))
    best = next((index for index in order if results[index].method not in CONTROLS), order[0])
    compared = [index for index in order if len(correct[index]) >= FEWEST_SEEDS]
    intervals: dict[int, Interval] = {}
    if best in compared:
        found = bootstrap_differences([correct[index] for index in compared], compared.index(best))
        intervals = {index: interval for index, interval in zip(compared, found, strict=True) if index != best}
    return [_row(results[index], results[best], intervals.get(index)) for index in order]


def _row(result: ResultFile, best: ResultFile, interval: Interval | None) -> Row:
    published, source = published_figure(result)
    last, chosen = result.acc1.mean, result.best_acc1
    agree1, lp = _measured(result.agree1), _measured(result.lp)
    return Row(
        method=result.method,
        control=result.method in CONTROLS,
        data_free=result.data_free,
        seeds=len(result.seeds),
        acc1=last,
        acc1_std=result.acc1.std,
        best_acc1=None if chosen is None else chosen.mean,
        best_acc1_std=None if chosen is None else chosen.std,
        agree1=agree1.mean,
        agree1_std=agree1.std,
        lp=lp.mean,
        lp_std=lp.std,
        **{key: own_cost(result, key) for key in ("seconds", "images", "teacher_queries")},
        published=published,
        published_source=source,
        last_minus_published=_minus(result.acc1, published),
        best_minus_published=_minus(chosen, published),
        to_best=last - best.acc1.mean,
        to_best_low=None if interval is None else interval.low,
        to_best_high=None if interval is None else interval.high,
        exceeds_noise=None if interval is None else interval.exceeds_noise,
    )


def own_cost(result: ResultFile, key: str) -> float:
    """What one student of the method took below the teacher: its banks, and the mean of its distillations."""
    stages = {stage: result.cost[stage] for stage in METHOD_STAGES if stage in result.cost}
    return float(sum(getattr(cost.per_seed or cost, key) for cost in stages.values()))


def published_figure(result: ResultFile) -> tuple[float | None, str]:
    """Published Acc@1 of the method for this pair, percent, and its source: the highest where several print one."""
    for name in PUBLISHED_NAMES.get(result.method, ()):
        found = []
        for figure in result.published:
            key, factor = PUBLISHED_METRICS.get(figure.metric, ("", 1.0))
            if (figure.method, key) == (name, "acc1") and isinstance(figure.value, float) and not figure.note:
                found.append((factor * figure.value, f"{name}, {figure.source}"))
        if found:
            return max(found, key=lambda pair: pair[0])
    return None, ""


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """The table as CSV, whole or not at all; empty where there is no figure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _cell(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _minus(value: Statistic | None, other: float | None) -> float | None:
    return None if value is None or other is None else value.mean - other


def _target(result: ResultFile) -> str:
    return f"{result.dataset}_{teacher_of(result).name}_{result.student.name}"


def teacher_of(result: ResultFile) -> TeacherSummary:
    """The teacher. A `UserError` for a student from scratch, whose answers are compared with nobody's."""
    if result.teacher is None:
        raise UserError(f"compare: {result.student.name} of method {result.method} has no teacher; compare one pair's methods.")
    return result.teacher


def _measured(value: Statistic | None) -> Statistic:
    assert value is not None  # measured wherever there is a teacher
    return value
