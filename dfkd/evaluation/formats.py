"""The JSON files of the evaluation as types: `metrics.json` of one seed and the result file of a target.

docs/results-format.md explains every key. workflow/schemas/result.schema.json is `result_schema()`; a test keeps them equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfkd.errors import UserError
from dfkd.evaluation.published import PublishedFigure
from dfkd.files import read_json, write_json

FORMAT_VERSION = 1
AnyFile = TypeVar("AnyFile", bound=BaseModel)


class Part(BaseModel):
    """Base of all: immutable, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measured(Part):
    """Metrics of one set of student weights on the test split."""

    epoch: int | None = Field(description="epoch of the weights, counted from 1; null where their card does not say")
    acc1: float = Field(description="Acc@1, percent")
    acc5: float = Field(description="Acc@5, percent; Acc@K with fewer than five classes")
    agree1: float | None = Field(
        description="Agree@1: share of images on which student and teacher choose one class, percent; null without a teacher"
    )
    lp: float | None = Field(
        description="probability loyalty L_p = mean(1 - JSD^(1/4)), the form of the published figures; null without a teacher"
    )
    one_minus_js_distance: float | None = Field(description="mean(1 - sqrt(JSD)); null without a teacher")
    nll: float = Field(description="negative log-likelihood of the labels, mean, natural logarithm")
    ece: float = Field(description="expected calibration error, 0 to 1")
    per_class: list[float | None] = Field(description="Acc@1 of each class, percent; null for a class without test images")
    confusion: list[list[int]] = Field(description="row: label, column: the student's choice; numbers of images")


class Weights(Part):
    """A network that was evaluated."""

    name: str = Field(description="model name")
    params: int = Field(description="number of parameters")
    sha256: str = Field(description="SHA-256 of the weights file")


class Deployment(Part):
    """A student with blocks of branches in training, and the plain network that it becomes (`dfkd deploy`)."""

    blocks: str = Field(description="what its k×k convolutions were trained as: actdb, repvgg, acb or dbb")
    train_params: int = Field(description="parameters in training")
    train_macs: int = Field(description="multiply-adds of its branches for one image")
    deploy_params: int = Field(description="parameters when deployed")
    deploy_macs: int = Field(description="multiply-adds for one image when deployed")


class Latency(Part):
    """Forward passes of both forms of a student with blocks, on the machine that the evaluation ran on."""

    batch: int = Field(description="images of a pass")
    train_ms: float = Field(description="milliseconds, branch by branch; the median of many passes")
    deploy_ms: float = Field(description="milliseconds when deployed")
    ratio: float = Field(description="train_ms / deploy_ms")


class MeasuredTeacher(Weights):
    """The teacher of an evaluation."""

    acc1: float = Field(description="Acc@1 on the test split, percent")
    confusion: list[list[int]] = Field(description="row: label, column: the teacher's choice; numbers of images")


class MetricsFile(Part):
    """`metrics.json`: one student, one seed. A function of weights, test split and settings alone: no times, no paths."""

    format_version: int = FORMAT_VERSION
    dataset: str
    method: str = Field(description="of distilled weights; `scratch`: trained on the labels, `imported`: trained elsewhere")
    data_free: bool = Field(description="whether the student saw no real image")
    notes: dict[str, str] = Field(description="what the method says of its run, such as the embedding that it used")
    seed: int
    classes: list[str] = Field(description="class names in label order")
    images: int = Field(description="images of the test split")
    teacher: MeasuredTeacher | None = Field(description="null for a student from scratch")
    student: Weights
    deployment: Deployment | None = Field(None, description="of a student with blocks; null for a plain one")
    last: Measured = Field(description="the last epoch: the headline")
    best: Measured | None = Field(description="the epoch with the best Acc@1 on this test split; null if not kept")


class EvaluatedCheckpoint(Weights):
    """A checkpoint in a table of several."""

    checkpoint: str = Field(description="name of its file, or what tells its path from the others'")
    macs: int = Field(description="multiply-adds of the convolutions and linear layers for one image")
    acc1: float = Field(description="Acc@1, percent")
    acc5: float = Field(description="Acc@5, percent")
    agree1: float | None = Field(description="Agree@1 with the teacher, percent; null for the teacher, or without one")
    lp: float | None = Field(description="probability loyalty L_p; likewise")
    one_minus_js_distance: float | None = Field(description="mean(1 - sqrt(JSD)); likewise")
    nll: float = Field(description="negative log-likelihood of the labels")
    ece: float = Field(description="expected calibration error, 0 to 1")


class EvaluationFile(Part):
    """`evaluation.json`: checkpoints beside each other on one test split."""

    format_version: int = FORMAT_VERSION
    dataset: str
    images: int = Field(description="images of the test split")
    teacher: EvaluatedCheckpoint | None = Field(description="what the checkpoints are compared with; null if none was given")
    checkpoints: list[EvaluatedCheckpoint] = Field(description="in the order in which they were given")


class TeacherSummary(Part):
    """The teacher in a result."""

    name: str = Field(description="model name")
    params: int = Field(description="number of parameters")
    acc1: float = Field(description="Acc@1 on the test split, percent")


class StudentSummary(Part):
    """The student in a result."""

    name: str = Field(description="model name")
    params: int = Field(description="number of parameters; of a student with blocks: in the form that was evaluated")
    deployment: Deployment | None = Field(None, description="of a student with blocks; null for a plain one")


class Statistic(Part):
    """One metric over the seeds."""

    mean: float
    std: float | None = Field(description="sample standard deviation (n - 1); null for one seed")
    per_seed: list[float] = Field(description="in the order of `seeds`")


class Augmentation(Part):
    """Where the variations of the student's bank came from."""

    backend: str = Field(description="augment.backend that made the bank: image-variations, bank-diffusion or none")
    accept_rate: float | None = Field(description="share of the variations that the fidelity filter kept; null without any")


class Amounts(Part):
    """What work took."""

    seconds: float = Field(description="wall-clock seconds, attempts that were interrupted included")
    images: int | float = Field(description="images synthesised")
    teacher_queries: int | float = Field(description="images that the teacher classified")
    optimiser_steps: int | float
    peak_memory: int | float = Field(description="bytes: resident on the CPU, allocated on a GPU; the largest of the jobs")
    energy: float | None = Field(
        None, description="joule of the CPU packages and the GPU, other programs included; null unless every job was metered"
    )


class StageCost(Amounts):
    """What a stage took: the sum over its jobs."""

    jobs: int = Field(description="cost files that were added up: one, one per shard or one per seed")
    per_seed: Amounts | None = Field(description="mean over the seeds; null for a stage that serves all seeds")
    latency: list[Latency] | None = Field(
        None, description="`evaluate` of a student with blocks: its forward passes, mean over the seeds; else null"
    )


class Provenance(Part):
    """Where a result comes from."""

    date: str = Field(description="when the file was written, UTC, ISO 8601")
    config_hash: str = Field(description="SHA-256 of the settings of all stages")
    versions: dict[str, str] = Field(description="python, this package, libraries")
    revision: str = Field(description="source revision of this package, `+changes` for uncommitted edits")
    hardware: dict[str, list[dict[str, str | int]]] = Field(description="by stage, the different machines it ran on")
    artefacts: dict[str, str] = Field(description="SHA-256 of each artefact")


class ResultFile(Part):
    """`results/{dataset}_{teacher}_{student}.json`, or `results/scratch/{dataset}_{student}.json`, which has no teacher.

    Two runs of one config on one machine differ in `cost`, `provenance.date` and `provenance.hardware` at most.
    """

    format_version: int = FORMAT_VERSION
    dataset: str
    method: str
    data_free: bool = Field(description="whether the student saw no real image")
    notes: dict[str, str] = Field(description="what the method says of its runs: `label_embedding`, `transfer_set`")
    teacher: TeacherSummary | None = Field(description="null for a student from scratch")
    student: StudentSummary
    seeds: list[int] = Field(min_length=1, description="one student per seed")
    test_images: int | None = Field(None, description="images of the test split; null in older files")
    acc1: Statistic = Field(description="Acc@1 of the last epoch, percent")
    acc5: Statistic = Field(description="Acc@5 of the last epoch, percent")
    agree1: Statistic | None = Field(description="Agree@1 of the last epoch, percent; null without a teacher")
    lp: Statistic | None = Field(description="probability loyalty 1 - JSD^(1/4) of the last epoch; null without a teacher")
    one_minus_js_distance: Statistic | None = Field(description="1 - sqrt(JSD) of the last epoch; null without a teacher")
    nll: Statistic = Field(description="negative log-likelihood of the last epoch")
    ece: Statistic = Field(description="expected calibration error of the last epoch")
    best_acc1: Statistic | None = Field(description="Acc@1 of the epoch chosen on the test split, percent; null if not kept")
    augmentation: Augmentation | None = Field(description="null for a method without diffusion variations")
    published: list[PublishedFigure] = Field(description="figures of the field for this data set and pair")
    cost: dict[str, StageCost] = Field(description="by stage")
    provenance: Provenance


PER_SEED_STAGES = ("first-stage", "distill", "scratch", "evaluate")  # one cost file per seed; the other stages serve all seeds
# Metrics of `Measured` that a result summarises over the seeds under the same key.
SUMMARISED = ("acc1", "acc5", "agree1", "lp", "one_minus_js_distance", "nll", "ece")


def result_schema() -> dict[str, Any]:
    """JSON Schema of a result file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ResultFile.model_json_schema()}


def write_result_schema(path: str | Path) -> None:
    """Write workflow/schemas/result.schema.json."""
    write_json(path, result_schema())


def write_result(path: str | Path, result: ResultFile) -> None:
    """Validate and write a result file."""
    content = result.model_dump(mode="json")
    jsonschema.validate(content, result_schema())
    write_json(path, content)


def read_result(path: str | Path) -> ResultFile:
    """Read and validate a result file. A file that is none is a `UserError` that names the first fault."""
    content = read_json(path)
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(result_schema()).iter_errors(content))
    if fault is not None:
        raise UserError(f"{path}: not a result file of this version ({fault.json_path}: {fault.message}); make it again.")
    return _validate(ResultFile, content, path, "result")


def read_metrics(path: str | Path) -> MetricsFile:
    """Read and validate a metrics file. A file that is none is a `UserError` that names the first fault."""
    return _validate(MetricsFile, read_json(path), path, "metrics")


def _validate(model: type[AnyFile], content: Any, path: str | Path, kind: str) -> AnyFile:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "file"
        raise UserError(f"{path}: not a {kind} file of this version ({place}: {fault['msg']}); make it again.") from None
