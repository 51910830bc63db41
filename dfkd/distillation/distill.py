"""The student's stage: synthesise against it, distil it, epoch by epoch. No real training image is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dfkd.bank.format import FORMAT_VERSION, BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint, file_sha256, write_json
from dfkd.config import STAGE_VERSIONS, DistillSettings
from dfkd.datasets.prepared import read_info, read_split
from dfkd.datasets.views import normalise, random_views, to_unit
from dfkd.distillation.dda import DDA
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.distillation.teacher import accuracy
from dfkd.errors import UserError, nearest
from dfkd.evaluation.predict import predict
from dfkd.history import History
from dfkd.models import build_model, count_parameters
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.provenance import Cost, revision, versions
from dfkd.runtime import Runtime, progress, seed_everything, stop_request
from dfkd.synthesis.init_bank import BLOCK

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
    lineage = {"teacher": card.sha256, **{f"bank {path.stem}": file_sha256(path) for path in banks}}
    identity = {
        "stage": "distill",
        "version": STAGE_VERSIONS["distill"],
        "settings": settings.model_dump(),
        "method": method,
        "architecture": architecture,
        "seed": seed,
        "test": file_sha256(test),
        **lineage,
    }
    checkpoint = Checkpoint(checkpoints, identity)

    # Image store: everything the student sees, uint8 on the device
    readers = [BankReader(path, teacher_sha256=card.sha256) for path in banks]
    given = sum(len(reader) for reader in readers)
    store = ImageStore(given + settings.epochs * settings.synthesis_batch_size, info.shape, runtime)
    for reader in readers:
        arrays = reader.load()
        store.append(arrays.images, arrays.labels)

    # Student, method, state
    seed_everything(seed, "distill")
    student = runtime.place(build_model(architecture, len(info.classes), info.channels, info.image_size))
    dda = METHODS[method](teacher_model, student, info, settings, runtime)
    teacher_answers = predict(teacher_model, test_images, info, runtime).argmax(1)
    cost, rows, first, sums, made_terms = Cost(), [], 0, torch.zeros(len(dda.terms)), {}
    best: dict[str, Any] = {"acc1": -1.0, "epoch": 0, "model": student.state_dict()}
    state = checkpoint.load()
    if state:
        dda.load_state(state["method"])
        cost, rows, first = Cost(**state["cost"]), state["rows"], state["step"]
        sums, made_terms, best = state["sums"], state["made"], state["best"]
    sums = sums.to(runtime.device)
    history = History(output.parent / "tensorboard", rows)

    def snapshot(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "method": dda.state(),
            "cost": cost.as_dict(),
            "rows": history.rows,
            "sums": sums.cpu(),
            "made": made_terms,
            "best": best,
        }

    meta = BankMeta(
        format_version=FORMAT_VERSION,
        kind="run",
        dataset=info,
        teacher_sha256=card.sha256,
        stage="distill",
        stage_version=STAGE_VERSIONS["distill"],
        settings=settings.model_dump(),
        seed=seed,
        lineage=[{"stage": "teacher", "architecture": card.architecture, "sha256": card.sha256}]
        + [{"stage": reader.meta.stage, "bank": path.stem, "images": len(reader)} for path, reader in zip(banks, readers, strict=True)],
        extra={"method": method, "student": architecture},
    )
    records = -(-settings.synthesis_batch_size // BLOCK)
    total = settings.epochs * settings.kd_steps
    name = f"{method} {card.architecture} → {architecture}"
    with BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank, stop_request() as stop:
        # the batch of an epoch is written before its first student step is saved
        bank.truncate(min(bank.blocks, records * -(-first // settings.kd_steps)))
        for block in bank.read_blocks():
            store.append(block.images, block.labels)
        with progress(name, total, first) as steps:
            for step in range(first, total):
                epoch, within = divmod(step, settings.kd_steps)
                with cost.measure(runtime):
                    if within == 0:
                        seed_everything(seed, "distill", epoch)
                        made = dda.synthesize()
                        bank.append_images(made.images, made.labels, made.scores)
                        store.append(made.images, made.labels)
                        dda.begin_epoch(rate_at(settings, epoch))
                        made_terms = made.terms
                        cost.images += len(made.images)
                        cost.optimiser_steps += settings.g_steps
                        cost.teacher_queries += len(made.images) * (settings.g_steps + 1)
                        order = None
                    order = order or ShuffledPasses(store.count, settings.batch_size, seed, "distill order", epoch)
                    index = order.batch(within).to(runtime.device)
                    views = random_views(store.images[index], info)
                    images = runtime.images(normalise(to_unit(views), info))
                    sums += dda.step(images, store.labels[index])
                    cost.optimiser_steps += 2
                    cost.teacher_queries += settings.batch_size
                note = ""
                if within == settings.kd_steps - 1:
                    row = _row(epoch, rate_at(settings, epoch), dda.terms, sums / settings.kd_steps, made_terms, store.count)
                    logits = predict(student, test_images, info, runtime)
                    row["acc1"] = accuracy(logits, test_labels)
                    row["agree1"] = accuracy(logits, teacher_answers)
                    history.append(row)
                    sums.zero_()
                    if row["acc1"] > best["acc1"]:
                        weights = {key: value.detach().cpu().clone() for key, value in student.state_dict().items()}
                        best = {"acc1": row["acc1"], "epoch": epoch + 1, "model": weights}
                    note = f"epoch {epoch + 1}  loss {row['loss']:.3f}  Acc@1 {row['acc1']:.2f}  Agree@1 {row['agree1']:.2f}"
                    checkpoint.save(snapshot(step + 1))
                steps.advance(note=note)
                if stop:
                    checkpoint.save(snapshot(step + 1))
                    stop.stop()
        bank.publish(output.parent / "bank.lmdb")

    def student_card(acc1: float, agree1: float | None, epoch: int) -> WeightsCard:
        measured = {"acc1": acc1, "epoch": float(epoch)} | ({} if agree1 is None else {"agree1": agree1})
        return WeightsCard(
            architecture=architecture,
            dataset=info,
            role="student",
            stage=f"distill {method}",
            stage_version=STAGE_VERSIONS["distill"],
            settings=settings.model_dump(),
            seed=seed,
            metrics=measured,
            params=count_parameters(student),
            versions=versions(),
            revision=revision(),
            sha256="",
            lineage=lineage,
        )

    last = history.rows[-1]
    history.write_csv(output.parent / "history.csv")
    history.close()
    write_json(output.parent / "cost.json", cost.as_dict())
    saved = save_weights(output, student, student_card(last["acc1"], last["agree1"], settings.epochs))
    student.load_state_dict(best["model"])
    save_weights(output.parent / "best.safetensors", student, student_card(best["acc1"], None, best["epoch"]))
    checkpoint.remove()
    return saved


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
