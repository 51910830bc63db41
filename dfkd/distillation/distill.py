"""The student's stage: synthesise against it, distil it, epoch by epoch. No real training image is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dfkd.bank.format import BLOCK_IMAGES, FORMAT_VERSION, BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint, file_sha256, write_json
from dfkd.config import STAGE_VERSIONS, DistillSettings
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.datasets.views import normalise, random_views, to_unit
from dfkd.distillation.dda import DDA
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.distillation.teacher import accuracy
from dfkd.errors import UserError, nearest
from dfkd.evaluation.predict import predict
from dfkd.history import History
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.provenance import Cost, revision, versions
from dfkd.runtime import Runtime, progress, seed_everything, stop_request

METHODS = {"dda": DDA}


def rate_at(settings: DistillSettings, epoch: int) -> float:
    """Student's learning rate of an epoch counted from 0: cosine to 0 over all epochs, stepped once an epoch."""
    return settings.lr * 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))


def distill(
    teacher: Path,
    banks: Sequence[Path],
    architecture: str,
    test: Path,
    settings: DistillSettings,
    seed: int,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    method: str = "dda",
) -> WeightsCard:
    """Distil `architecture` from the teacher on the banks and on images made against it.

    Writes `output` (last epoch) and its card, best.safetensors (best Acc@1 on the test split, for comparison with papers
    that print it), bank.lmdb (the run's own images), history.csv and cost.json beside it. Resumes from `checkpoints`.

    Args:
        banks: image banks of this teacher, sampled uniformly together with the run's own.
        test: prepared test split; measured once an epoch, trained on never.

    Raises:
        UserError: a bank of another teacher, an unknown method, a model that cannot take the images.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'; {nearest(method, METHODS)}.")
    teacher_model, card = load_model(teacher, runtime)
    info = card.dataset
    if read_info(test).classes != info.classes:
        raise UserError(f"{test}: its classes are not those of the teacher {teacher}; prepare the teacher's data set.")
    test_images, test_labels = read_split(test, "test")
    readers = {path: BankReader(path, teacher_sha256=card.sha256) for path in banks}
    lineage = {"teacher": card.sha256, **{f"bank {path.stem}": file_sha256(path) for path in banks}}
    checkpoint = Checkpoint(
        checkpoints,
        {
            "stage": "distill",
            "version": STAGE_VERSIONS["distill"],
            "settings": settings.model_dump(),
            "method": method,
            "architecture": architecture,
            "seed": seed,
            "test": file_sha256(test),
            "lineage": lineage,
        },
    )

    # networks, method, state
    seed_everything(seed, "distill")
    student = runtime.place(build_model(architecture, len(info.classes), info.channels, info.image_size))
    objective = METHODS[method](teacher_model, student, info, settings, runtime)
    teacher_answers = predict(teacher_model, test_images, info, runtime).argmax(1)
    cost, rows, first, made_terms = Cost(), [], 0, {}
    sums = torch.zeros(len(objective.terms))
    best: dict[str, Any] = {"acc1": -1.0, "epoch": 0, "model": {}}
    state = checkpoint.load()
    if state:
        objective.load_state(state["method"])
        cost, rows, first = Cost(**state["cost"]), state["rows"], state["step"]
        sums, made_terms, best = state["sums"], state["made"], state["best"]
    sums = sums.to(runtime.device)
    history = History(output.parent / "tensorboard", rows)

    def save(step: int) -> None:
        state = {"step": step, "method": objective.state(), "cost": cost.as_dict(), "rows": history.rows}
        checkpoint.save({**state, "sums": sums.cpu(), "made": made_terms, "best": best})

    meta = _bank_meta(card, readers, settings, seed, method, architecture)
    records = -(-settings.synthesis_batch_size // BLOCK_IMAGES)
    total = settings.epochs * settings.kd_steps
    with (
        BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank,
        stop_request() as stop,
        progress(f"{method} {card.architecture} → {architecture}", total, first) as steps,
    ):
        # the batch of an epoch is written before the first of its student steps is saved
        bank.truncate(min(bank.blocks, records * -(-first // settings.kd_steps)))
        store = _filled_store([*readers.values(), bank.reader()], settings, info, runtime)
        order: ShuffledPasses | None = None
        for step in range(first, total):
            epoch, within = divmod(step, settings.kd_steps)
            with cost.measure(runtime):
                if within == 0:
                    seed_everything(seed, "distill", epoch)
                    made = objective.synthesize(stop)
                    bank.append_images(made.images, made.labels, made.scores)
                    store.append(made.images, made.labels)
                    objective.begin_epoch(rate_at(settings, epoch))
                    order, made_terms = None, made.terms
                    cost.images += len(made.images)
                    cost.optimiser_steps += settings.g_steps
                    cost.teacher_queries += len(made.images) * (settings.g_steps + 1)
                order = order or ShuffledPasses(store.count, settings.batch_size, seed, "distill order", epoch)
                index = order.batch(within).to(runtime.device)
                views = random_views(store.images[index], info)
                sums += objective.step(runtime.images(normalise(to_unit(views), info)), store.labels[index])
                cost.optimiser_steps += 2  # student and head
                cost.teacher_queries += settings.batch_size
            note = ""
            if within == settings.kd_steps - 1:
                row = _row(epoch, rate_at(settings, epoch), objective.terms, sums / settings.kd_steps, made_terms, store.count)
                logits = predict(student, test_images, info, runtime)
                row |= {"acc1": accuracy(logits, test_labels), "agree1": accuracy(logits, teacher_answers)}
                history.append(row)
                sums.zero_()
                if row["acc1"] > best["acc1"]:
                    best = {"acc1": row["acc1"], "epoch": epoch + 1, "model": _copy(student.state_dict())}
                note = f"epoch {epoch + 1}  loss {row['loss']:.3f}  Acc@1 {row['acc1']:.2f}  Agree@1 {row['agree1']:.2f}"
                save(step + 1)
            steps.advance(note=note)
            if stop:
                save(step + 1)
                stop.stop()
        bank.publish(output.parent / "bank.lmdb")

    last = history.rows[-1]
    history.write_csv(output.parent / "history.csv")
    history.close()
    write_json(output.parent / "cost.json", {**cost.as_dict(), "hardware": runtime.describe()})
    card = WeightsCard(
        architecture=architecture,
        dataset=info,
        role="student",
        stage=f"distill {method}",
        stage_version=STAGE_VERSIONS["distill"],
        settings=settings.model_dump(),
        seed=seed,
        metrics={"acc1": last["acc1"], "agree1": last["agree1"], "epoch": float(settings.epochs)},
        versions=versions(),
        revision=revision(),
        lineage=lineage,
    )
    saved = save_weights(output, student, card)
    student.load_state_dict(best["model"])
    measured = {"acc1": best["acc1"], "epoch": float(best["epoch"])}
    save_weights(output.parent / "best.safetensors", student, card.model_copy(update={"metrics": measured}))
    checkpoint.remove()
    return saved


def _filled_store(readers: Sequence[BankReader], settings: DistillSettings, info: DatasetInfo, runtime: Runtime) -> ImageStore:
    """Everything that the student sees, uint8 on the device, with room for all that the run will make."""
    room = settings.epochs * settings.synthesis_batch_size
    store = ImageStore(sum(len(reader) for reader in readers) + room, info.shape, runtime)
    for reader in readers:
        if len(reader):
            arrays = reader.load()
            store.append(arrays.images, arrays.labels)
    return store


def _copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def _bank_meta(
    card: WeightsCard,
    readers: dict[Path, BankReader],
    settings: DistillSettings,
    seed: int,
    method: str,
    architecture: str,
) -> BankMeta:
    lineage: list[dict[str, Any]] = [{"stage": "teacher", "architecture": card.architecture, "sha256": card.sha256}]
    lineage += [{"stage": bank.meta.stage, "bank": path.stem, "images": len(bank)} for path, bank in readers.items()]
    return BankMeta(
        format_version=FORMAT_VERSION,
        kind="run",
        dataset=card.dataset,
        teacher_sha256=card.sha256,
        stage="distill",
        stage_version=STAGE_VERSIONS["distill"],
        settings=settings.model_dump(),
        seed=seed,
        lineage=lineage,
        extra={"method": method, "student": architecture},
    )


def _row(
    epoch: int, rate: float, names: Sequence[str], means: torch.Tensor, made: dict[str, float], images: int
) -> dict[str, float]:
    """A history row. Raises a `UserError` when a term is not finite."""
    row = {"epoch": epoch + 1, "lr": rate, **dict(zip(names, means.tolist(), strict=True))}
    row |= {f"g_{name}": value for name, value in made.items()} | {"images": images}
    for name, value in row.items():
        if not math.isfinite(value):
            raise UserError(f"epoch {epoch + 1}: {name} is not finite; lower lr (or lr_g) and run again.")
    return row
