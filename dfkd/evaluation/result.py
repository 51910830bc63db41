"""The result of a target: metrics of all seeds, costs of all stages, published figures and provenance in one JSON file."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dfkd.bank.reader import BankReader
from dfkd.config import check_method
from dfkd.errors import UserError
from dfkd.evaluation.formats import (
    PER_SEED_STAGES,
    SUMMARISED,
    Amounts,
    Augmentation,
    MetricsFile,
    Provenance,
    ResultFile,
    StageCost,
    Statistic,
    StudentSummary,
    TeacherSummary,
    read_metrics,
    write_result,
)
from dfkd.evaluation.published import from_scratch, matching
from dfkd.evaluation.show import show, sum_known
from dfkd.files import file_sha256, read_json
from dfkd.provenance import revision, versions
from dfkd.runtime import cpu_name

__all__ = ["collect", "show"]

COST_KEYS = tuple(name for name in Amounts.model_fields if name != "energy")  # `energy` is not told everywhere


def collect(
    dataset: str,
    teacher: str | None,
    student: str,
    method: str,
    metrics: Sequence[Path],
    costs: Mapping[str, Sequence[Path]],
    artefacts: Mapping[str, Path],
    variations: Path | None,
    config_hash: str,
    output: Path,
) -> ResultFile:
    """Gather a result and write it.

    Args:
        dataset, teacher, student, method: the target; every metrics file must be of it. No teacher for method `scratch`.
        metrics: one metrics file per seed, in any order.
        costs: stage name -> its cost files: one, one per shard, or one per seed (distill, scratch, evaluate).
        artefacts: name -> file whose SHA-256 goes into the provenance.
        variations: the variations bank; None for a method without one.
        config_hash: SHA-256 of the settings of all stages.
        output: the result file.

    Raises:
        UserError: an unknown method, a file that is missing, broken or of another target, a seed that occurs twice, or
            teachers that differ.
    """
    if teacher is not None or method != "scratch":
        check_method(method)
    files = _read_metrics(dataset, teacher, student, method, metrics)
    read = {stage: [_read_cost(path) for path in paths] for stage, paths in costs.items()}
    first = files[0]
    best = [file.best.acc1 for file in files if file.best is not None]
    result = ResultFile(
        dataset=dataset,
        method=method,
        data_free=all(file.data_free for file in files),
        notes=_notes(files),
        teacher=_teacher(first),
        student=StudentSummary(name=student, params=first.student.params),
        seeds=[file.seed for file in files],
        test_images=first.images,
        **{key: _over_seeds([getattr(file.last, key) for file in files]) for key in SUMMARISED},
        best_acc1=summarise(best) if len(best) == len(files) else None,
        augmentation=_augmentation(variations, first.teacher.sha256) if first.teacher else None,
        published=matching(dataset, teacher, student) if teacher else from_scratch(dataset, student),
        cost={stage: add_costs(stage, contents) for stage, contents in read.items() if contents},
        provenance=Provenance(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            config_hash=config_hash,
            versions=versions(),
            revision=revision(),
            hardware=_hardware(read),
            artefacts={name: file_sha256(path) for name, path in sorted(artefacts.items())},
        ),
    )
    write_result(output, result)
    return result


def _over_seeds(values: Sequence[float | None]) -> Statistic | None:
    """The statistic of a metric; None if it was not measured."""
    measured = [value for value in values if value is not None]
    return summarise(measured) if len(measured) == len(values) else None


def _notes(files: Sequence[MetricsFile]) -> dict[str, str]:
    """What the seeds' runs say of themselves; where they differ, everything that is said."""
    keys = sorted({key for file in files for key in file.notes})
    return {key: ", ".join(dict.fromkeys(file.notes[key] for file in files if key in file.notes)) for key in keys}


def _teacher(file: MetricsFile) -> TeacherSummary | None:
    if file.teacher is None:
        return None
    return TeacherSummary(name=file.teacher.name, params=file.teacher.params, acc1=file.teacher.acc1)


def summarise(values: Sequence[float]) -> Statistic:
    """Mean and sample standard deviation (n - 1; None for one value)."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(mean=statistics.fmean(values), std=spread, per_seed=list(values))


def add_costs(stage: str, costs: Sequence[Mapping[str, Any]]) -> StageCost:
    """The sum over the jobs of a stage (peak memory: the largest), with the mean per seed for a stage that runs per seed."""
    total = {key: sum(cost[key] for cost in costs) for key in COST_KEYS}
    total["peak_memory"] = max(cost["peak_memory"] for cost in costs)
    energy = sum_known(cost.get("energy") for cost in costs)
    mean = None
    if stage in PER_SEED_STAGES:
        means = {key: statistics.fmean(cost[key] for cost in costs) for key in COST_KEYS}
        mean = Amounts(**means, energy=None if energy is None else energy / len(costs))
    return StageCost(jobs=len(costs), per_seed=mean, energy=energy, **total)


def _read_metrics(dataset: str, teacher: str | None, student: str, method: str, paths: Sequence[Path]) -> list[MetricsFile]:
    """The metrics files sorted by seed, all of the one target and the one teacher."""
    if not paths:
        raise UserError(f"result of {dataset}_{teacher}_{student}: no metrics file given; give at least one with --metrics.")
    files = sorted(((read_metrics(path), path) for path in paths), key=lambda pair: pair[0].seed)
    wanted = {"data set": dataset, "teacher": teacher, "student": student, "method": method}
    first, first_path = files[0]
    for file, path in files:
        own = file.teacher.name if file.teacher else None
        given = {"data set": file.dataset, "teacher": own, "student": file.student.name, "method": file.method}
        for key, value in wanted.items():
            if given[key] != value:
                raise UserError(f"{path}: its {key} is {given[key]}, not {value}; give metrics of one target.")
        if file.teacher and first.teacher and file.teacher.sha256 != first.teacher.sha256:
            raise UserError(
                f"{path}: its teacher's SHA-256 is not that of {first_path}; evaluate all seeds against one teacher."
            )
    for (one, path), (other, other_path) in itertools.pairwise(files):
        if one.seed == other.seed:
            raise UserError(f"{other_path}: seed {one.seed} is already in {path}; give one metrics file per seed.")
    return [file for file, _ in files]


def _read_cost(path: Path) -> dict[str, Any]:
    content = read_json(path)
    numbers = [content.get(key) for key in COST_KEYS] if isinstance(content, dict) else [None]
    numbers += [content["energy"]] if isinstance(content, dict) and content.get("energy") is not None else []
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise UserError(f"{path}: not a cost file (it must have the numbers {', '.join(COST_KEYS)}); run its stage again.")
    return content


def _hardware(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, str | int]]]:
    """By stage, the different machines that its cost files name, and the one that gathers the result."""
    found: dict[str, list[dict[str, str | int]]] = {}
    for stage, contents in costs.items():
        for machine in (content["hardware"] for content in contents if content.get("hardware")):
            machines = found.setdefault(stage, [])
            if machine not in machines:
                machines.append(machine)
    found["result"] = [{"device": "cpu", "name": cpu_name()}]
    return found


def _augmentation(variations: Path | None, teacher_sha256: str) -> Augmentation | None:
    if variations is None:
        return None
    meta = BankReader(variations, teacher_sha256=teacher_sha256).meta
    if meta.kind != "variations":
        raise UserError(
            f"{variations}: a bank of kind '{meta.kind}', not of variations; give the variations.lmdb of this teacher."
        )
    return Augmentation(backend=meta.extra["backend"], accept_rate=meta.extra["accept_rate"])
