"""All pictures of an evaluation, under fixed names, drawn while the networks are at hand or again from a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfkd.datasets.prepared import read_info, read_split
from dfkd.errors import UserError
from dfkd.evaluation.boundary import plot_boundary
from dfkd.evaluation.checkpoints import Architectures, check_test, check_together, open_checkpoint
from dfkd.evaluation.class_accuracy import plot_class_accuracy
from dfkd.evaluation.disagreement import plot_disagreement
from dfkd.evaluation.evaluated import Evaluated, images_per_class
from dfkd.evaluation.feature_map import plot_feature_map
from dfkd.evaluation.formats import MetricsFile
from dfkd.evaluation.plots import plot_confusion
from dfkd.evaluation.predict import read_predictions
from dfkd.evaluation.reliability import plot_reliability
from dfkd.runtime import Runtime
from dfkd.settings import EvaluateSettings


def draw_pictures(evaluated: Evaluated, metrics: MetricsFile, folder: Path, settings: EvaluateSettings) -> None:
    """Draw all `EVALUATION_PICTURES` of what was evaluated into a folder; `metrics` is its `metrics.json`."""
    plot_confusion(metrics, folder / "confusion.png")
    plot_disagreement(evaluated, folder / "disagreement.png")
    plot_reliability(evaluated, folder / "reliability.png", settings.ece_bins)
    plot_class_accuracy(evaluated, folder / "classes.png")
    plot_feature_map(evaluated, folder / "features.png", settings.batch_size)
    plot_boundary(evaluated, folder / "boundary.png")


def open_run(folder: Path, test: Path, runtime: Runtime, teacher: Path | None = None, banks: Sequence[Path] = ()) -> Evaluated:
    """A run that was evaluated: `student.safetensors` and `predictions.h5` of its folder, with its teacher if it has one and
    the banks that it was distilled on.

    Raises:
        UserError: something is absent, or does not belong together.
    """
    info = read_info(test)
    student = open_checkpoint(folder / "student.safetensors", Architectures(), info, runtime)
    above = open_checkpoint(teacher, Architectures(), info, runtime) if teacher else None
    check_together(above, student, None)
    check_test(info, test, student)
    images, labels = read_split(test, "test")
    networks = {"teacher": above, "student": student} if above else {"student": student}
    path = folder / "predictions.h5"
    predictions = read_predictions(path)
    for role, one in networks.items():
        if predictions.attributes.get(f"{role}_sha256") != one.card.sha256 or not predictions.labels.equal(labels):
            raise UserError(f"{path}: of another {role} than {one.path} or of another test split; run `dfkd evaluate` again.")
    return Evaluated.of(networks, predictions.logits, images, labels, images_per_class(banks, info.classes), runtime)
