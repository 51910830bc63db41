"""The first stage of the methods in two: what is trained before the student's own run, and kept as an artefact."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS, check_method
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import denormalise, normalise, random_views, to_bytes, to_unit
from dfkd.distillation.given import Given, read_given
from dfkd.distillation.stream import Store, stream_notes
from dfkd.distillation.zoo.first_stage import FirstStage
from dfkd.divergence import Watch, lowered, rollback_notes
from dfkd.errors import UserError
from dfkd.files import together, write_json
from dfkd.history import SHOWN, History
from dfkd.methods import METHODS, MethodSettings, TwoStageSettings
from dfkd.models import build_model
from dfkd.models.adapter import MissingFeatures
from dfkd.models.weights import WeightsCard, load_model, load_state, read_card, save_weights
from dfkd.plugins import code_hash, load
from dfkd.progress import Stopped, StopRequest, progress, stop_request
from dfkd.provenance import Cost, revision, versions
from dfkd.runtime import Runtime, seed_everything


def train_first_stage(
    teacher: Path,
    banks: Sequence[Path],
    architecture: str,
    settings: TwoStageSettings,
    seed: int,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    method: str,
    data: Path | None = None,
    packed: Path | None = None,
) -> WeightsCard:
    """Train the first stage of `method` for a student `architecture`, on the images that the student will be distilled on.

    Writes `output` (what the method keeps: the student's weights, or a paraphraser of the teacher) and its card;
    `<output stem>.history.csv`, `.timing.csv` and `.cost.json` beside it. Resumes from `checkpoints`.

    Args:
        settings: those of the method; `first_stage_keys` says which count here.
        banks, data, packed: as `distill` takes them.

    Raises:
        UserError: the method has no first stage, a pair or a transfer set that it cannot take.
    """
    if not METHODS[check_method(method)].first_stage:
        raise UserError(f"method {method}: has no first stage; distil at once.")
    with contextlib.closing(read_given(method, settings, read_card(teacher), banks, data, packed)) as given:
        return _train(teacher, given, architecture, settings, seed, output, checkpoints, runtime, method)


def _train(
    teacher: Path,
    given: Given,
    architecture: str,
    settings: TwoStageSettings,
    seed: int,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    method: str,
) -> WeightsCard:
    """The stage, with the images that it was given."""
    teacher_model, card = load_model(teacher, runtime)
    info, own = card.dataset, settings.first_stage()
    streamed = given.streamed(settings, 0, info.shape, runtime)
    checkpoint = Checkpoint(
        checkpoints,
        {
            "stage": "first-stage",
            "version": STAGE_VERSIONS["first-stage"],
            "settings": own,
            "streamed": streamed,
            "method": method,
            "architecture": architecture,
            "seed": seed,
            "lineage": given.lineage,
            "plugins": [code_hash("method", method), code_hash("model", card.architecture), code_hash("model", architecture)],
        },
    )
    seed_everything(seed, "first-stage")
    student = runtime.place(build_model(architecture, len(info.classes), info.channels, info.image_size, settings.blocks))
    stage = _build(method, teacher_model, student, info, settings, runtime)
    store = given.store(0, info.shape, settings, streamed, runtime)
    rate = own["first_lr"] * lowered(checkpoint.folder)
    training = Training(stage, store, rate, seed)
    watch = Watch(f"{method} first stage", ["loss"], runtime.device, "first_lr")
    history = History(output.with_suffix(".history.csv"), output.parent / "tensorboard" / "first_stage")
    if state := checkpoint.load():
        training.load_state(state)
        history.load_state(state)

    steps, total = settings.kd_steps, settings.first_epochs * settings.kd_steps
    with contextlib.closing(store), stop_request() as stop, progress(f"{method} first stage", total, training.done) as bar:
        for step in range(training.done, total):
            with training.cost.measure(runtime):
                try:
                    watch.see(step, training.step(stop))
                except Stopped:  # while images were waited for
                    checkpoint.save({**training.state(), **history.state()})
                    raise
            note, last = "", (step + 1) % steps == 0
            if last or stop:
                watch.check()
            if last:
                epoch = step // steps + 1
                row = {"epoch": epoch, "lr": rate, "loss": training.mean_loss(steps)}
                history.append(row, training.cost.seconds, steps * settings.batch_size)
                if history.shows(settings.first_epochs):
                    history.show("training views", to_bytes(denormalise(training.images[:SHOWN], info)))
                note = f"epoch {epoch}  loss {row['loss']:.4f}"
            if last or stop:
                checkpoint.save({**training.state(), **history.state()})
            bar.advance(note=note)
            if stop:
                stop.stop()

    kept = WeightsCard(
        architecture=architecture if stage.role == "student" else f"{stage.role} of {card.architecture}",
        dataset=info,
        role=stage.role,
        stage=f"first-stage {method}",
        stage_version=STAGE_VERSIONS["first-stage"],
        settings=own,
        seed=seed,
        metrics={"loss": history.rows[-1]["loss"]},
        versions=versions(),
        revision=revision(),
        lineage=given.lineage,
        notes=stage.notes | rollback_notes(checkpoint.folder) | stream_notes(streamed, settings),
    )
    with together():
        history.publish()
        write_json(output.with_suffix(".cost.json"), {**training.cost.as_dict(), "hardware": runtime.describe()})
        kept = save_weights(output, stage.kept, kept)
    checkpoint.remove()
    return kept


class Training:
    """What is trained, its optimiser, and all that is counted on the way; knows how to make one step, save and resume."""

    def __init__(self, stage: FirstStage, store: Store, rate: float, seed: int) -> None:
        if not store.count:
            raise UserError("there is no image to train the first stage on; give a transfer set that holds some.")
        self.stage, self.store, self.info, self.runtime = stage, store, stage.info, stage.runtime
        self.networks = nn.ModuleList(stage.trained)
        settings = stage.settings
        self.optimiser = torch.optim.SGD(
            self.networks.parameters(),
            lr=rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=self.runtime.precision == "fast",
        )
        steps = settings.first_epochs * settings.kd_steps
        self.order: Any = store.passes(settings.batch_size, seed, "first-stage order", steps=steps)
        self.loss = self.runtime.compiled(stage.loss)
        self.cost, self.done = Cost(), 0
        self.total = torch.zeros((), device=self.runtime.device)  # losses of the epoch so far
        self.images = torch.empty(0)  # of the last step
        stage.student.eval()
        self.networks.train()

    def step(self, stop: StopRequest) -> torch.Tensor:
        """One step on random views of the next images; returns its loss, detached.

        Raises:
            Stopped: a signal came while the images were waited for; nothing has changed.
        """
        with stop.at_once():
            found = self.store.fetch(self.order, self.done)
        views = random_views(found.images, self.info, self.store.cropped)
        images = self.runtime.images(normalise(to_unit(views), self.info))
        loss = self.loss(images)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.total += loss.detach()
        self.images = images
        self.done += 1
        self.cost.optimiser_steps += 1
        self.cost.teacher_queries += len(found.rows)
        return loss.detach()

    def mean_loss(self, steps: int) -> float:
        """The mean loss of the epoch's steps, and a fresh start for the sum."""
        mean = self.total.item() / steps
        self.total.zero_()
        return mean

    def state(self) -> dict[str, Any]:
        """All that a resumed stage needs."""
        return {
            "done": self.done,
            "networks": self.networks.state_dict(),
            "kept": self.stage.kept.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "cost": self.cost.as_dict(),
            "total": self.total.cpu(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.stage.kept.load_state_dict(state["kept"])
        self.networks.load_state_dict(state["networks"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.cost = state["done"], Cost(**state["cost"])
        self.total = state["total"].to(self.runtime.device)


def read_first_stage(
    path: Path | None, method: str, architecture: str, settings: MethodSettings, seed: int, lineage: Mapping[str, str]
) -> tuple[dict[str, torch.Tensor], WeightsCard] | None:
    """What the first stage of a run has kept, and its card; None for a method without one.

    Raises:
        UserError: it is missing, or of another method, teacher, student, seed, transfer set or settings.
    """
    if not METHODS[method].first_stage or not isinstance(settings, TwoStageSettings):
        if path is not None:
            raise UserError(f"method {method}: has no first stage; leave --first-stage away.")
        return None
    if path is None:
        raise UserError(f"method {method}: starts from its first stage; make that by `dfkd first-stage`, give --first-stage.")
    card, own = read_card(path), settings.first_stage()
    differ = [key for key in own if card.settings.get(key) != own[key]]
    why = (
        f"is of stage '{card.stage}'" if card.stage != f"first-stage {method}"
        else "is of another teacher or of other images" if card.lineage != lineage
        else f"is of student {card.architecture}" if card.role == "student" and card.architecture != architecture
        else f"has seed {card.seed}, not {seed}" if card.seed != seed
        else f"has {differ[0]} {card.settings.get(differ[0])}, not {own[differ[0]]}" if differ
        else ""
    )  # fmt: skip
    if why:
        raise UserError(f"{path}: {why}; make the first stage of this run with the run's own settings.")
    return load_state(path), card


def _build(
    method: str, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: TwoStageSettings, runtime: Runtime
) -> FirstStage:
    try:
        made: FirstStage = load(METHODS[method].first_stage)(teacher, student, info, settings, runtime)
    except MissingFeatures as error:
        raise error.of_method(method) from None
    return made
