"""Methods on one data set and pair as a table, and which of their differences are more than noise."""

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
from dfkd.evaluation.formats import PER_SEED_STAGES, Amounts, ResultFile, Statistic, TeacherSummary, read_result
from dfkd.evaluation.noise import FEWEST_SEEDS, Flags, Interval, binomial_interval, bootstrap_differences
from dfkd.evaluation.predict import read_predictions
from dfkd.evaluation.show import PUBLISHED_METRICS, sum_known
from dfkd.files import atomic_path

CONTROLS = ("real", "noise")  # there to be compared with; none of them can be the best
METHOD_STAGES = ("init-bank", "augment", "distill", "scratch")  # what a student takes below the teacher; measuring is left out

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
    "kd": ("KD", "KD-ORI"),
    "scratch": ("student_scratch",),
    "kdrefine": ("KDrefine",),
    "kd-vanilla": ("KD",),
    "kd-logitstd": ("KD+logit standardisation",),
    "kd-ab": ("AB",),
    "kd-at": ("AT",),
    "kd-cc": ("CC",),
    "kd-crd": ("CRD",),
    "kd-dkd": ("DKD",),
    "kd-fitnet": ("FitNet",),
    "kd-fsp": ("FSP",),
    "kd-ft": ("FT",),
    "kd-nst": ("NST",),
    "kd-pkt": ("PKT",),
    "kd-rkd": ("RKD",),
    "kd-sp": ("SP",),
    "kd-vid": ("VID",),
}
# Sources of the methods `kd-…` and `kdrefine`: one recipe, which is not that of `kd` and `real`, whose name they share.
BENCHMARK = ("KDrefine", "RepDistiller", "mdistiller", "logit standardisation")


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
    agree1: float | None  # none for a student without a teacher, as lp
    agree1_std: float | None
    lp: float | None
    lp_std: float | None
    seconds: float
    images: float
    teacher_queries: float
    energy: float | None  # joule; none unless every stage was metered
    published: float | None
    published_source: str
    last_minus_published: float | None
    best_minus_published: float | None
    to_best: float  # Acc@1 minus that of the best data-free method
    to_best_low: float | None  # none for the best itself, and where nothing tells the noise
    to_best_high: float | None
    exceeds_noise: bool | None
    noise: str  # what told the interval: bootstrap or binomial; empty without one


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
        teacher_of(result)
        if target_of(result) != target_of(first):
            raise UserError(
                f"{path}: of {target_of(result)}, not of {target_of(first)} as {paths[0]}; compare results of one target."
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
    folder = runs / result.method / target_of(result)
    return [folder / f"seed{seed}" for seed in result.seeds]


def read_correct(results: Sequence[ResultFile], runs: Path) -> list[Flags]:
    """For each method, which test images each seed's student has right: bool [seeds, images], images in one order.

    Raises:
        UserError: predictions are absent, of another test split, or not those that the result was made of.
    """
    gathered, labels = [], None
    for result in results:
        right, own = correct_of(result, runs)
        labels = own if labels is None else labels
        if not np.array_equal(labels, own):
            path = run_folders(result, runs)[0] / "predictions.h5"
            raise UserError(f"{path}: of another test split than the others; evaluate all methods on one.")
        gathered.append(right)
    return gathered


def correct_of(result: ResultFile, runs: Path) -> tuple[Flags, npt.NDArray[np.int64]]:
    """Which test images each seed's student has right, bool [seeds, images], and the labels of the images.

    Raises:
        UserError: predictions are absent, of several test splits, or not those that the result was made of.
    """
    rows, labels = [], None
    for folder, accuracy in zip(run_folders(result, runs), result.acc1.per_seed, strict=True):
        path = folder / "predictions.h5"
        predictions = read_predictions(path)
        if "student" not in predictions.logits:
            raise UserError(f"{path}: holds no logits of a student; make it again with `dfkd evaluate`.")
        own = predictions.labels.numpy()
        labels = own if labels is None else labels
        if not np.array_equal(labels, own):
            raise UserError(f"{path}: of another test split than the others; evaluate all methods on one.")
        right = predictions.logits["student"].argmax(1).numpy() == own
        if abs(100 * right.mean() - accuracy) > 1e-3:
            raise UserError(
                f"{path}: its Acc@1 is {100 * right.mean():.2f} %, the result's {accuracy:.2f} %; make the result again."
            )
        rows.append(right)
    assert labels is not None  # a result has one seed at least
    return np.stack(rows), labels


def best_of(results: Sequence[ResultFile]) -> int:
    """Which result the others are held against: the highest Acc@1 of a data-free method; of any where there is none."""
    order = _by_accuracy(results)
    return next((index for index in order if results[index].data_free and results[index].method not in CONTROLS), order[0])


def table(results: Sequence[ResultFile], correct: Sequence[Flags | None], images: int | None = None) -> list[Row]:
    """The rows by falling Acc@1, each with its distance to the best (`best_of`).

    Args:
        results: of one data set and pair.
        correct: what `read_correct` gives for them; None where the students' answers are not known.
        images: size of the test split, for the noise of what the bootstrap cannot tell; without it, that is left open.
    """
    best, order = best_of(results), _by_accuracy(results)
    known = {index: flags for index in order if (flags := correct[index]) is not None and len(flags) >= FEWEST_SEEDS}
    intervals: dict[int, Interval] = {}
    if best in known and len(known) > 1:
        found = bootstrap_differences(list(known.values()), list(known).index(best))
        intervals = dict(zip(known, found, strict=True))
    if images is not None:
        others = [index for index in range(len(results)) if index not in intervals]
        intervals |= {index: binomial_interval(results[index].acc1, results[best].acc1, images) for index in others}
    intervals.pop(best, None)
    return [_row(results[index], results[best], intervals.get(index)) for index in order]


def _by_accuracy(results: Sequence[ResultFile]) -> list[int]:
    return sorted(range(len(results)), key=lambda index: (-results[index].acc1.mean, results[index].method))


def _row(result: ResultFile, best: ResultFile, interval: Interval | None) -> Row:
    published, source = published_figure(result)
    last, chosen = result.acc1.mean, result.best_acc1
    agree1, lp = result.agree1, result.lp
    return Row(
        method=result.method,
        control=result.method in CONTROLS,
        data_free=result.data_free,
        seeds=len(result.seeds),
        acc1=last,
        acc1_std=result.acc1.std,
        best_acc1=None if chosen is None else chosen.mean,
        best_acc1_std=None if chosen is None else chosen.std,
        agree1=None if agree1 is None else agree1.mean,
        agree1_std=None if agree1 is None else agree1.std,
        lp=None if lp is None else lp.mean,
        lp_std=None if lp is None else lp.std,
        **{key: own_cost(result, key) or 0.0 for key in ("seconds", "images", "teacher_queries")},
        energy=own_cost(result, "energy"),
        published=published,
        published_source=source,
        last_minus_published=_minus(result.acc1, published),
        best_minus_published=_minus(chosen, published),
        to_best=last - best.acc1.mean,
        to_best_low=None if interval is None else interval.low,
        to_best_high=None if interval is None else interval.high,
        exceeds_noise=None if interval is None else interval.exceeds_noise,
        noise="" if interval is None else interval.rule,
    )


def own_cost(result: ResultFile, key: str) -> float | None:
    """What one student took below the teacher: the banks of its method, and the mean of its distillations.

    None for an energy that is not known of every stage.
    """
    amounts = []
    for stage in METHOD_STAGES:
        cost = result.cost.get(stage)
        if cost is not None:
            jobs = cost.jobs if stage in PER_SEED_STAGES and cost.per_seed is None else 1
            whole: Amounts = cost.per_seed or cost
            value = getattr(whole, key)
            amounts.append(None if value is None else value / jobs)
    return sum_known(amounts)


def published_figure(result: ResultFile) -> tuple[float | None, str]:
    """Published Acc@1 of the method for this pair, percent, and its source: the highest where several print one."""
    if result.notes.get("transfer_set", "train") != "train":
        return None, ""  # the published figures are of the training images
    ours = result.method.startswith("kd-") or result.method == "kdrefine"
    for name in PUBLISHED_NAMES.get(result.method, ()):
        found = []
        for figure in result.published:
            key, factor = PUBLISHED_METRICS.get(figure.metric, ("", 1.0))
            theirs = figure.source.startswith(BENCHMARK)
            if name == "KD" and ours != theirs:
                continue
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


def target_of(result: ResultFile) -> str:
    """The target without its method, such as `cifar10_wrn402_wrn161`; `cifar10_wrn161` for a student from scratch."""
    return f"{result.dataset}_{pair_of(result)}"


def pair_of(result: ResultFile) -> str:
    """Teacher and student as a target names them, `wrn402_wrn161`; the student alone where it has no teacher."""
    return "_".join(part.name for part in (result.teacher, result.student) if part is not None)


def teacher_of(result: ResultFile) -> TeacherSummary:
    """The teacher. A `UserError` for a student from scratch, whose answers are compared with nobody's."""
    if result.teacher is None:
        raise UserError(f"compare: {result.student.name} of method {result.method} has no teacher; compare one pair's methods.")
    return result.teacher
