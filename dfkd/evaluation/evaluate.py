"""The evaluate stage: networks on the real test split, against their teacher. Nothing here reads a training image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.errors import UserError
from dfkd.evaluation import metrics
from dfkd.evaluation.checkpoints import Architectures, Checkpoint, check_test, check_together, open_checkpoint, short_names
from dfkd.evaluation.deployment import deployment, latencies
from dfkd.evaluation.evaluated import Evaluated, images_per_class
from dfkd.evaluation.formats import EvaluatedCheckpoint, EvaluationFile, Measured, MeasuredTeacher, MetricsFile, Weights
from dfkd.evaluation.predict import predict, write_predictions
from dfkd.files import together, write_json
from dfkd.models.weights import WeightsCard
from dfkd.progress import progress
from dfkd.provenance import Cost
from dfkd.runtime import Runtime
from dfkd.settings import EvaluateSettings


def evaluate(
    checkpoints: Sequence[Path],
    test: Path,
    settings: EvaluateSettings,
    runtime: Runtime,
    *,
    teacher: Path | None = None,
    best: Path | None = None,
    architectures: Architectures | None = None,
    output: Path | None = None,
    banks: Sequence[Path] = (),
    pictures: bool = True,
) -> EvaluationFile:
    """Measure checkpoints on the test split, alone or against a teacher.

    The headline of a run is its last epoch. `best`, the epoch that did best on this very split, is measured under its own
    name: choosing it has seen the test labels.

    Args:
        checkpoints: weights of this project, or state dicts trained elsewhere.
        test: prepared data; only its test split is read.
        teacher: what they are compared with.
        best: weights of the best epoch of the one checkpoint that is given.
        architectures: of checkpoints without a card.
        output: folder for `metrics.json`, `metrics.cost.json`, `predictions.h5` and the pictures: of one checkpoint in it, of
            several in a folder each, with `evaluation.json` beside them. Without it nothing is written.
        banks: what the one checkpoint that is given was distilled on, for a picture.
        pictures: whether they are drawn.

    Raises:
        UserError: a checkpoint cannot be read, or belongs to another data set, another teacher or another run;
            a bank cannot be read.
    """
    if len(checkpoints) > 1 and (best or banks):
        raise UserError("evaluate: --best and --bank belong to one checkpoint; evaluate them one by one.")
    names = short_names(checkpoints)
    info, architectures = read_info(test), architectures or Architectures()
    above = open_checkpoint(teacher, architectures, info, runtime) if teacher else None
    students = [open_checkpoint(path, architectures, info, runtime) for path in checkpoints]
    chosen = open_checkpoint(best, architectures, info, runtime) if best else None
    for student in students:
        check_together(above, student, chosen)
        check_test(info, test, above or student)
    images, labels = read_split(test, "test")
    bank_images = images_per_class(banks, info.classes)

    networks = [*([above] if above else []), *students, *([chosen] if chosen else [])]
    logits, costs = _predict(networks, images, info, settings, runtime)
    first = 1 if above else 0
    for place, (name, student) in enumerate(zip(names, students, strict=True)):
        parts = {"teacher": 0} if above else {}
        parts |= {"student": first + place} | ({"best": len(networks) - 1} if chosen else {})
        outputs = {role: logits[part] for role, part in parts.items()}
        cards = {role: networks[part].card for role, part in parts.items()}
        content = metrics_file(cards, outputs, labels, settings)
        if output is None:
            continue
        folder = output / name if len(students) > 1 else output
        with together():
            _write(folder, content, cards, outputs, labels, [costs[part] for part in parts.values()], runtime)
            if pictures:
                from dfkd.evaluation.pictures import draw_pictures  # what draws is imported only when it is needed

                drawn = {"teacher": above, "student": student} if above else {"student": student}
                draw_pictures(Evaluated.of(drawn, outputs, images, labels, bank_images, runtime), content, folder, settings)
    file = _table(info.name, names, networks, logits, labels, settings, above is not None)
    if output is not None and len(students) > 1:
        write_json(output / "evaluation.json", file.model_dump(mode="json"))
    return file


def _predict(
    networks: Sequence[Checkpoint], images: Tensor, info: DatasetInfo, settings: EvaluateSettings, runtime: Runtime
) -> tuple[list[Tensor], list[Cost]]:
    """The logits of each network, and what they took."""
    logits, costs = [], []
    with progress("evaluate", len(networks) * -(-len(images) // settings.batch_size)) as steps:
        for one in networks:
            cost = Cost()
            with cost.measure(runtime):
                logits.append(predict(one.model, images, info, runtime, settings.batch_size, steps))
            costs.append(cost)
    return logits, costs


def metrics_file(
    cards: dict[str, WeightsCard], logits: dict[str, Tensor], labels: Tensor, settings: EvaluateSettings
) -> MetricsFile:
    """The metrics of `student` and, if kept, `best`, against `teacher`, if there is one, from their logits."""
    teacher, student, above = cards.get("teacher"), cards["student"], logits.get("teacher")
    distilled = student.stage.startswith("distill ")
    trained = "imported" if "imported" in student.settings else "scratch"
    return MetricsFile(
        dataset=student.dataset.name,
        method=student.stage.removeprefix("distill ") if distilled else trained,
        data_free=distilled and "data" not in student.lineage,
        notes=student.notes,
        seed=student.seed,
        classes=student.dataset.classes,
        images=len(labels),
        teacher=_measured_teacher(teacher, logits["teacher"], labels) if teacher else None,
        student=Weights(name=student.architecture, params=student.params, sha256=student.sha256),
        deployment=deployment(student),
        last=_measured(student, logits["student"], above, labels, settings),
        best=_measured(cards["best"], logits["best"], above, labels, settings) if "best" in cards else None,
    )


def _measured(
    card: WeightsCard, logits: Tensor, teacher: Tensor | None, labels: Tensor, settings: EvaluateSettings
) -> Measured:
    epoch = card.metrics.get("epoch")
    values = metrics.all_metrics(logits, teacher, labels, settings.ece_bins)
    return Measured.model_validate({"epoch": None if epoch is None else int(epoch), **values})


def _measured_teacher(card: WeightsCard, logits: Tensor, labels: Tensor) -> MeasuredTeacher:
    return MeasuredTeacher(
        name=card.architecture,
        params=card.params,
        sha256=card.sha256,
        acc1=metrics.accuracy(logits, labels),
        confusion=metrics.confusion(logits, labels),
    )


def _table(
    dataset: str,
    names: Sequence[str],
    networks: Sequence[Checkpoint],
    logits: Sequence[Tensor],
    labels: Tensor,
    settings: EvaluateSettings,
    with_teacher: bool,
) -> EvaluationFile:
    """The checkpoints beside each other; `networks` and `logits` begin with the teacher, if there is one."""
    given = ["teacher", *names] if with_teacher else list(names)
    rows = []
    for place, (name, one, output) in enumerate(zip(given, networks, logits, strict=False)):  # a best epoch is left out
        teacher = logits[0] if with_teacher and place > 0 else None
        found = _measured(one.card, output, teacher, labels, settings).model_dump(include=set(EvaluatedCheckpoint.model_fields))
        card = one.card
        rows.append(
            EvaluatedCheckpoint(
                checkpoint=name, name=card.architecture, params=card.params, sha256=card.sha256, macs=one.macs, **found
            )
        )
    teacher_row = rows.pop(0) if with_teacher else None
    return EvaluationFile(dataset=dataset, images=len(labels), teacher=teacher_row, checkpoints=rows)


def _write(
    folder: Path,
    content: MetricsFile,
    cards: dict[str, WeightsCard],
    logits: dict[str, Tensor],
    labels: Tensor,
    spent: Sequence[Cost],
    runtime: Runtime,
) -> None:
    """Metrics, predictions, and what the forward passes behind them took; drawing is left out."""
    attributes = {"dataset": content.dataset, "classes": json.dumps(content.classes, ensure_ascii=False)}
    for role, card in cards.items():
        attributes |= {role: card.architecture, f"{role}_sha256": card.sha256}
    cost = Cost(
        seconds=sum(one.seconds for one in spent),
        teacher_queries=len(labels) if "teacher" in cards else 0,
        peak_memory=max(one.peak_memory for one in spent),
    )
    written: dict[str, Any] = {**cost.as_dict(), "hardware": runtime.describe()}
    if content.deployment is not None:
        written["latency"] = [one.model_dump() for one in latencies(cards["student"], runtime)]
    write_predictions(folder / "predictions.h5", logits, labels, attributes)
    write_json(folder / "metrics.json", content.model_dump(mode="json"))
    write_json(folder / "metrics.cost.json", written)
