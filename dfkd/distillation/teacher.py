"""The teacher: ordinary training on the real images, the last stage that sees them."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.datasets.views import denormalise, draw_training_views, normalise, to_bytes, to_unit
from dfkd.distillation.store import ImageStore, is_streamed
from dfkd.distillation.stream import ArraySource, Store, StreamedStore, stream_notes
from dfkd.divergence import Watch, rollback_notes, slowed
from dfkd.evaluation.predict import predict
from dfkd.files import file_sha256, together, write_json
from dfkd.history import SHOWN, History
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, import_checkpoint, save_weights
from dfkd.packed.stream import PackedSource, kept_source, packed_lineage
from dfkd.progress import Stopped, StopRequest, progress, stop_request
from dfkd.provenance import Cost, revision, versions
from dfkd.runtime import Runtime, seed_everything
from dfkd.settings import TeacherSettings


def rate_at(settings: TeacherSettings, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0."""
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
    return settings.lr * settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Acc@1 in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def train_teacher(
    data: Path,
    architecture: str,
    settings: TeacherSettings,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    packed: Path | None = None,
) -> WeightsCard:
    """Train `architecture` on the training split of `data`; the last epoch's weights go to `output` (safetensors).

    The recipe of the field's public code by default: SGD, batch 256, MultiStep, random crop and flip. Beside `output`: the
    card (JSON), history.csv, timing.csv, cost.json. Resumes from `checkpoints`.

    Args:
        packed: the packed file that holds the training images, if `data` was prepared with `keep_packed`.

    Raises:
        UserError: no training split, or the model cannot take the data set's images.
    """
    info, ranks = read_info(data), runtime.ranks
    test_images, test_labels = read_split(data, "test")
    source = kept_source(data, packed, info, settings.store) or ArraySource(*read_split(data, "train"))
    count = len(source.labels)
    streamed = packed is not None or is_streamed(settings.store, count, info.shape, runtime)
    checkpoint = Checkpoint(
        checkpoints,
        {
            "stage": "teacher",
            "version": STAGE_VERSIONS["teacher"],
            "settings": settings.model_dump(),
            "architecture": architecture,
            "data": file_sha256(data),
            "streamed": streamed,
        },
    )
    chosen, settings = settings, slowed(settings, checkpoint.folder)
    notes = rollback_notes(checkpoint.folder) | stream_notes(streamed, settings)
    seed_everything(settings.seed, "teacher")
    model = build_model(architecture, len(info.classes), info.channels, info.image_size, settings.blocks)
    model = runtime.place(model).train()
    ranks.share_statistics(model)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    steps_per_epoch = -(-count // settings.batch_size)
    total = settings.epochs * steps_per_epoch
    store: Store
    if streamed or isinstance(source, PackedSource):
        store = StreamedStore([source], 0, info.shape, settings.shuffle_buffer, runtime)
    else:
        store = ImageStore(count, info.shape, runtime)
        store.append(source.images, source.labels)
    size = min(settings.batch_size, count)
    order: Any = store.passes(size, settings.seed, "teacher order", steps=total)
    first, cost = 0, Cost()
    history = History(output.parent / "history.csv", output.parent / "tensorboard")
    state = checkpoint.load()
    if state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, cost = state["step"], Cost(**state["cost"])
        history.load_state(state)
    total_loss = torch.as_tensor(state["loss"] if state else 0.0, device=runtime.device)
    shown: torch.Tensor | None = state.get("shown") if state else None  # of the last batch of an epoch, to be looked at

    def training_loss(batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            logits = model(batch)
        return F.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)

    training_loss = runtime.compiled(training_loss)  # type: ignore[assignment]

    def snapshot(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "cost": cost.as_dict(),
            "loss": total_loss,
            "shown": shown,
            **history.state(),
        }

    def measure(epoch: int, stop: StopRequest) -> str:
        """The end of an epoch: its row of the history, which is returned as words, and the state with it."""
        with stop.at_once():
            acc1 = accuracy(predict(model, test_images, info, runtime), test_labels)
        mean_loss = total_loss.item() / steps_per_epoch
        row = {"epoch": epoch + 1, "lr": rate_at(settings, epoch), "loss": mean_loss, "acc1": acc1}
        history.append(row, cost.seconds, steps_per_epoch * settings.batch_size)
        if history.shows(settings.epochs):
            history.show("training views", shown)
        total_loss.zero_()
        checkpoint.save(snapshot((epoch + 1) * steps_per_epoch))
        return f"epoch {epoch + 1}  loss {mean_loss:.4f}  Acc@1 {acc1:.2f}"

    watch = Watch(f"teacher {architecture}", ["loss"], runtime.device)
    with (
        contextlib.closing(source),
        contextlib.closing(store),
        stop_request(ranks.agreement) as stop,
        progress(f"teacher {architecture}", total, first) as steps,
    ):
        if len(history.rows) < first // steps_per_epoch:  # a signal came while the last epoch was measured
            measure(len(history.rows), stop)
        for step in range(first, total):
            epoch = step // steps_per_epoch
            with cost.measure(runtime):
                for group in optimiser.param_groups:
                    group["lr"] = rate_at(settings, epoch)
                try:
                    with stop.at_once():
                        found = store.fetch(order, step)
                except Stopped:
                    watch.check()
                    checkpoint.save(snapshot(step))
                    raise
                views = draw_training_views(size, info, store.cropped).part(ranks.part(size))
                batch = runtime.images(normalise(to_unit(views.apply(ranks.mine(found.images), info)), info))
                loss, share = training_loss(batch, ranks.mine(found.labels)), ranks.share(size)
                optimiser.zero_grad()
                ranks.backward(loss, optimiser, share)
                optimiser.step()
                loss = ranks.mean(loss.detach(), share)
                total_loss += loss
                watch.see(step, loss)
            cost.optimiser_steps += 1
            note = ""
            if (step + 1) % steps_per_epoch == 0:
                watch.check()
                shown = to_bytes(denormalise(batch[:SHOWN], info)).cpu()
                with contextlib.suppress(Stopped):  # measured when the stage goes on
                    note = measure(epoch, stop)
            steps.advance(note=note)
            if stop:
                watch.check()
                checkpoint.save(snapshot(step + 1))
                stop.stop()

    card = _card(architecture, info, chosen.model_dump(), settings.seed, history.rows[-1]["acc1"], notes)
    card = card.model_copy(update={"lineage": packed_lineage(source)})
    with together():
        history.publish()
        write_json(output.parent / "cost.json", {**cost.as_dict(), "hardware": runtime.describe()})
        card = save_weights(output, model, card)
    checkpoint.remove()
    return card


def import_teacher(
    checkpoint: Path, architecture: str, info: DatasetInfo, output: Path, test: Path | None, runtime: Runtime
) -> WeightsCard:
    """Turn a checkpoint of the usual CIFAR zoos (`.pth`) into a teacher; its Acc@1 is measured when `test` is given.

    Raises:
        UserError: names, shapes or the number of classes do not fit.
    """
    model = runtime.place(import_checkpoint(checkpoint, architecture, info)).eval()
    history = History(output.parent / "history.csv", output.parent / "tensorboard")
    cost = Cost()
    acc1, measured, count = None, {}, 0
    if test is not None:
        images, labels = read_split(test, "test")
        with cost.measure(runtime):
            acc1 = accuracy(predict(model, images, info, runtime), labels)
        measured, count = {"acc1": acc1}, len(images)
    history.append({"epoch": 0, **measured}, cost.seconds, count)
    with together():
        history.publish()
        write_json(output.parent / "cost.json", {**cost.as_dict(), "hardware": runtime.describe()})
        return save_weights(output, model, _card(architecture, info, {"imported": checkpoint.name}, 0, acc1))


def _card(
    architecture: str,
    info: DatasetInfo,
    settings: dict[str, Any],
    seed: int,
    acc1: float | None,
    notes: dict[str, str] | None = None,
) -> WeightsCard:
    return WeightsCard(
        architecture=architecture,
        blocks=settings.get("blocks", "plain"),
        dataset=info,
        role="teacher",
        stage="teacher",
        stage_version=STAGE_VERSIONS["teacher"],
        settings=settings,
        seed=seed,
        metrics={} if acc1 is None else {"acc1": acc1},
        versions=versions(),
        revision=revision(),
        notes=notes or {},
    )
