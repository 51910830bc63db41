"""The evaluate stage: a student and its teacher on the real test split. Nothing here reads a training image."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import Tensor

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.errors import UserError
from dfkd.evaluation import metrics
from dfkd.evaluation.formats import Measured, MeasuredTeacher, MetricsFile, Weights
from dfkd.evaluation.predict import predict, write_predictions
from dfkd.files import write_json
from dfkd.models.weights import WeightsCard, load_model, read_card
from dfkd.progress import progress
from dfkd.provenance import Cost
from dfkd.runtime import Runtime
from dfkd.settings import EvaluateSettings

logger = logging.getLogger(__name__)


def evaluate(
    teacher: Path | None,
    student: Path,
    best: Path | None,
    test: Path,
    settings: EvaluateSettings,
    output: Path,
    predictions: Path,
    runtime: Runtime,
) -> Cost:
    """Measure a student on the test split, and write its metrics and the logits of all networks.

    The headline is `student`, the weights of the last epoch. `best`, the epoch that did best on this very split, is
    measured under its own name: choosing it has seen the test labels.

    Args:
        teacher, student, best: weights files. Without a teacher the student is one from scratch, trained on the real images.
        test: prepared data; only its test split is read.
        output: metrics JSON; what it took goes to `.cost.json` beside it.
        predictions: HDF5 with the logits.

    Raises:
        UserError: the student belongs to another data set or another teacher, or the test file to another data set.
    """
    given = {"teacher": teacher, "student": student, "best": best}
    paths = {role: path for role, path in given.items() if path is not None}
    cards = {role: read_card(path) for role, path in paths.items()}
    _check_cards(cards, paths)
    first = next(iter(paths))
    _check_test(read_info(test), test, cards[first].dataset, paths[first])
    cost = Cost()
    with cost.measure(runtime):
        images, labels = read_split(test, "test")
        logits: dict[str, Tensor] = {}
        with progress("evaluate", len(paths) * -(-len(images) // settings.batch_size)) as steps:
            for role, path in paths.items():
                model, card = load_model(path, runtime)
                logits[role] = predict(model, images, card.dataset, runtime, settings.batch_size, steps)
        cost.teacher_queries = len(images) if teacher is not None else 0
        content = _metrics_file(cards, logits, labels, settings)
        attributes = {"dataset": content.dataset, "classes": json.dumps(content.classes, ensure_ascii=False)}
        for role, card in cards.items():
            attributes |= {role: card.architecture, f"{role}_sha256": card.sha256}
        write_predictions(predictions, logits, labels, attributes)
        write_json(output, content.model_dump(mode="json"))
    write_json(output.with_suffix(".cost.json"), {**cost.as_dict(), "hardware": runtime.describe()})
    last = content.last
    if content.teacher is None:
        logger.info("Acc@1 %.2f %%", last.acc1)
    else:
        figures = (last.acc1, last.agree1, last.lp, content.teacher.acc1)
        logger.info("Acc@1 %.2f %%  Agree@1 %.2f %%  L_p %.4f  (teacher's Acc@1 %.2f %%)", *figures)
    return cost


def _metrics_file(
    cards: dict[str, WeightsCard], logits: dict[str, Tensor], labels: Tensor, settings: EvaluateSettings
) -> MetricsFile:
    def measured(role: str) -> Measured:
        values = metrics.all_metrics(logits[role], logits.get("teacher"), labels, settings.ece_bins)
        epoch = cards[role].metrics.get("epoch")
        return Measured.model_validate({"epoch": None if epoch is None else int(epoch), **values})

    teacher, student = cards.get("teacher"), cards["student"]
    return MetricsFile(
        dataset=student.dataset.name,
        method=student.stage.removeprefix("distill ") if teacher else "scratch",
        data_free=teacher is not None and "data" not in student.lineage,
        notes=student.notes,
        seed=student.seed,
        classes=student.dataset.classes,
        images=len(labels),
        teacher=_measured_teacher(teacher, logits["teacher"], labels) if teacher else None,
        student=Weights(name=student.architecture, params=student.params, sha256=student.sha256),
        last=measured("student"),
        best=measured("best") if "best" in cards else None,
    )


def _measured_teacher(card: WeightsCard, logits: Tensor, labels: Tensor) -> MeasuredTeacher:
    return MeasuredTeacher(
        name=card.architecture,
        params=card.params,
        sha256=card.sha256,
        acc1=metrics.accuracy(logits, labels),
        confusion=metrics.confusion(logits, labels),
    )


def _check_cards(cards: dict[str, WeightsCard], paths: dict[str, Path]) -> None:
    """Students of another data set, teacher or run are refused; so is a distilled one without its teacher."""
    if "teacher" not in cards:
        if cards["student"].role == "student":
            raise UserError(f"{paths['student']}: was distilled from a teacher; give that with --teacher.")
        return
    teacher, student = cards["teacher"], cards["student"]
    for role in (role for role in cards if role != "teacher"):
        card, path = cards[role], paths[role]
        fault = _difference(card.dataset, teacher.dataset)
        if fault:
            raise UserError(
                f"{path}: {role} and teacher {paths['teacher']} do not fit together: {fault}; give a pair of one data set."
            )
        named = card.lineage.get("teacher")
        if named is not None and named != teacher.sha256:
            raise UserError(
                f"{path}: distilled from a teacher with SHA-256 {named[:12]}…, but {paths['teacher']} has "
                f"{teacher.sha256[:12]}…; give the teacher that it was distilled from."
            )
        if (card.architecture, card.seed) != (student.architecture, student.seed):
            raise UserError(f"{path}: {card.architecture} of seed {card.seed}, not of the same run as {paths['student']}.")


def _check_test(info: DatasetInfo, test: Path, wanted: DatasetInfo, teacher: Path) -> None:
    fault = _difference(info, wanted)
    if fault:
        raise UserError(f"{test}: not the test split of teacher {teacher}: {fault}; give the data set that it was trained on.")


def _difference(given: DatasetInfo, wanted: DatasetInfo) -> str:
    """In words, the first thing that keeps images of one from being images of the other; empty if nothing does."""
    for key, what in (("name", "data set"), ("channels", "channels"), ("image_size", "image size")):
        if getattr(given, key) != getattr(wanted, key):
            return f"{what} {getattr(given, key)} against {getattr(wanted, key)}"
    if len(given.classes) != len(wanted.classes):
        return f"{len(given.classes)} classes against {len(wanted.classes)}"
    return "" if given.classes == wanted.classes else "the classes have other names or another order"
