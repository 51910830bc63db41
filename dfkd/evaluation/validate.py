"""One checkpoint on a test split, with the time of its forward pass: what `dfkd validate` prints."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dfkd.datasets.prepared import read_info
from dfkd.evaluation.checkpoints import Architectures, open_checkpoint
from dfkd.evaluation.deployment import BATCHES, deployment, pass_time
from dfkd.evaluation.evaluate import evaluate
from dfkd.evaluation.formats import Deployment, EvaluationFile, Part
from dfkd.models.deploy import folded_model
from dfkd.runtime import Runtime
from dfkd.settings import EvaluateSettings


class Pass(Part):
    """A timed forward pass; of a network with blocks: deployed."""

    batch: int = Field(description="images of the pass")
    ms: float = Field(description="milliseconds, the median of many passes")


class Validation(Part):
    """Metrics and time of one network."""

    evaluation: EvaluationFile
    deployment: Deployment | None = Field(description="both forms of a network with blocks; null for a plain one")
    passes: list[Pass]
    hardware: dict[str, str | int]


def validate(
    checkpoint: Path, test: Path, settings: EvaluateSettings, runtime: Runtime, architectures: Architectures | None = None
) -> Validation:
    """Measure a network as `evaluate` does, without a teacher, and time it as it would run: blocks folded.

    Raises:
        UserError: see `evaluate`.
    """
    architectures = architectures or Architectures()
    found = evaluate([checkpoint], test, settings, runtime, architectures=architectures)
    info = read_info(test)
    opened = open_checkpoint(checkpoint, architectures, info, runtime)
    model, card = opened.model, opened.card
    if card.blocks != "plain" and not card.deployed:
        model = runtime.place(folded_model(model, card, str(checkpoint))[0])
    passes = [Pass(batch=batch, ms=pass_time(model, info, batch, runtime)) for batch in BATCHES]
    return Validation(evaluation=found, deployment=deployment(card), passes=passes, hardware=runtime.describe())
