"""A teacher and a student that were trained on the bars, and the evaluation of the two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd.datasets.prepared import read_split
from dfkd.evaluation.checkpoints import Architectures, open_checkpoint
from dfkd.evaluation.evaluated import Evaluated
from dfkd.evaluation.predict import predict
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, read_card, save_weights


@pytest.fixture(scope="session")
def tiny_student(tiny_data, tiny_teacher, tmp_path_factory) -> Path:
    """A student with random weights: it disagrees with its teacher on many bars."""
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(5)
    model = build_model("resnet8", 3, 1, 8)
    card = WeightsCard(
        architecture="resnet8", dataset=tiny_data.info, role="student", stage="distill dda", stage_version=1, settings={},
        seed=0, metrics={"epoch": 4.0}, lineage={"teacher": read_card(tiny_teacher).sha256},
    )  # fmt: skip
    save_weights(folder / "student.safetensors", model, card)
    return folder / "student.safetensors"


@pytest.fixture(scope="session")
def evaluated(tiny_data, tiny_teacher, tiny_student, reference) -> Evaluated:
    """The two on the bars."""
    networks = {
        role: open_checkpoint(path, Architectures(), tiny_data.info, reference)
        for role, path in (("teacher", tiny_teacher), ("student", tiny_student))
    }
    images, labels = read_split(tiny_data.test, "test")
    logits = {role: predict(one.model, images, tiny_data.info, reference) for role, one in networks.items()}
    return Evaluated.of(networks, logits, images, labels, torch.tensor([30, 20, 10]), reference)
