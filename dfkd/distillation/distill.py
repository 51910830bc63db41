"""The student's stage: synthesise against it, distil it, round by round. No real training image is read.

The exceptions are there to be compared with and are marked as not data-free: the control `real`, and `kd` on a transfer set of
real images.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dfkd.bank.format import FORMAT_VERSION, BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS, check_method
from dfkd.datasets.arrays import Split
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.datasets.transfer import read_transfer_set, transfer_sha256
from dfkd.distillation.run import Run, build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, turns
from dfkd.distillation.store import ImageStore, is_streamed
from dfkd.distillation.stream import ArraySource, BankSource, Source, Store, StreamedStore, stream_notes
from dfkd.distillation.teacher import accuracy
from dfkd.divergence import rollback_notes, slowed
from dfkd.errors import UserError
from dfkd.evaluation.predict import predict
from dfkd.files import file_sha256, write_json
from dfkd.history import History
from dfkd.methods import METHODS, KDSettings, MethodSettings, transfer_set
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.plugins import code_hash, load
from dfkd.progress import progress, stop_request
from dfkd.provenance import revision, versions
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.synthesizer import FreshSynthesizer


def distill(
    teacher: Path,
    banks: Sequence[Path],
    architecture: str,
    test: Path,
    settings: MethodSettings,
    seed: int,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    method: str = "dda",
    data: Path | None = None,
) -> WeightsCard:
    """Distil `architecture` from the teacher by a method, on the banks and on images made against the student.

    Writes `output` (last epoch) and its card, best.safetensors (best Acc@1 on the test split, for comparison with papers
    that print it), bank.lmdb (the run's own images, or samples of its generator), history.csv, timing.csv and cost.json beside
    it, and generator.safetensors if the method has a generator that lives for the whole run. Resumes from `checkpoints`.

    Args:
        banks: image banks of this teacher, sampled uniformly together with the run's own.
        test: prepared test split; measured once an epoch, trained on never.
        data: prepared data set or folder of images: what `real` and `kd` distil on, if not on a bank.

    Raises:
        UserError: a bank of another teacher, an unknown method, a transfer set that does not fit, a model that cannot take
            the images or the method.
    """
    check_method(method)
    teacher_model, card = load_model(teacher, runtime)
    info = card.dataset
    if read_info(test).classes != info.classes:
        raise UserError(f"{test}: its classes are not those of the teacher {teacher}; prepare the teacher's data set.")
    kind, _ = transfer_set(method, settings)
    _check_given(method, kind, banks, data)
    given = read_transfer_set(data, kind, info) if data is not None else None
    readers = {path: BankReader(path, teacher_sha256=card.sha256) for path in banks}
    lineage = {"teacher": card.sha256, **{f"bank {path.stem}": file_sha256(path) for path in banks}}
    if data is not None:
        lineage["data"] = transfer_sha256(data)
    fresh = issubclass(load(METHODS[method].synthesizer), FreshSynthesizer)
    own = 0 if fresh else count_syntheses(settings) * getattr(settings, "synthesis_batch_size", 0)
    there = sum(len(reader) for reader in readers.values()) + (len(given[0]) if given else 0)
    streamed = there > 0 and is_streamed(settings.store, there + own, info.shape, runtime)
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
            "streamed": streamed,
            "plugins": [code_hash("method", method), code_hash("model", card.architecture), code_hash("model", architecture)],
        },
    )
    chosen, settings = settings, slowed(settings, checkpoint.folder)
    seed_everything(seed, "distill")
    student = runtime.place(build_model(architecture, len(info.classes), info.channels, info.image_size, settings.blocks))
    synthesizer, objective = build_method(method, teacher_model, student, card, settings, runtime)
    if banks and fresh:
        raise UserError(f"method {method}: makes every batch afresh and reads no bank; leave --bank away.")
    examination = Examination(teacher_model, student, read_split(test, "test"), info, runtime)
    state = checkpoint.load()
    first = state["turn"] if state else 0
    history = History(output.parent / "history.csv", output.parent / "tensorboard")

    notes = synthesizer.notes | ({"transfer_set": settings.transfer_set} if isinstance(settings, KDSettings) else {})
    notes |= rollback_notes(checkpoint.folder) | stream_notes(streamed, settings)
    meta = _bank_meta(card, readers, chosen, seed, method, architecture, notes)
    store = _store(given, readers.values(), own, info, settings, streamed, runtime)
    with (
        contextlib.closing(store),
        BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank,
        stop_request() as stop,
        progress(f"{method} {card.architecture} → {architecture}", count_turns(settings), first) as bar,
    ):
        run = Run(synthesizer, objective, store, bank, settings, seed, runtime)
        objective.begin(store)
        if state:
            run.load_state(state["run"])
            history.load_state(state)
            examination.best = state["best"]
        else:
            bank.truncate(0)
        if not fresh:
            store.append_bank(bank.reader())
        for number, turn in itertools.islice(enumerate(turns(settings)), first, None):
            note = ""
            with run.cost.measure(runtime):
                if turn.step < 0:
                    run.synthesize(turn, stop)
                else:
                    run.distill(turn)
            if turn.last:
                run.watch.check()
                run.keep_sample(turn.epoch)
                trained = run.steps * settings.batch_size
                row = run.row(turn.epoch) | examination.hold(turn.epoch)
                history.append(row, run.cost.seconds, trained)
                if history.shows(settings.epochs):
                    history.show("synthesised", run.shown)
                note = f"epoch {turn.epoch + 1}  Acc@1 {row['acc1']:.2f}  Agree@1 {row['agree1']:.2f}"
                note += f"  loss {row['loss']:.3f}" if "loss" in row else ""
            if turn.last or stop:
                checkpoint.save({"turn": number + 1, "run": run.state(), "best": examination.best, **history.state()})
            bar.advance(note=note)
            if stop:
                stop.stop()
        bank.publish(output.parent / "bank.lmdb")

    last = history.rows[-1]
    history.publish()
    write_json(output.parent / "cost.json", {**run.cost.as_dict(), "hardware": runtime.describe()})
    student_card = WeightsCard(
        architecture=architecture,
        blocks=settings.blocks,
        dataset=info,
        role="student",
        stage=f"distill {method}",
        stage_version=STAGE_VERSIONS["distill"],
        settings=chosen.model_dump(),
        seed=seed,
        metrics={"acc1": last["acc1"], "agree1": last["agree1"], "epoch": float(settings.epochs)},
        versions=versions(),
        revision=revision(),
        lineage=lineage,
        notes=notes,
    )
    saved = save_weights(output, student, student_card)
    if synthesizer.generator is not None:
        generator_card = student_card.model_copy(
            update={"architecture": f"{method} generator", "blocks": "plain", "role": "generator", "metrics": {}}
        )
        save_weights(output.parent / "generator.safetensors", synthesizer.generator, generator_card)
    best = examination.best
    student.load_state_dict(best["model"])
    measured = {"acc1": best["acc1"], "epoch": float(best["epoch"])}
    save_weights(output.parent / "best.safetensors", student, student_card.model_copy(update={"metrics": measured}))
    checkpoint.remove()
    return saved


def _store(
    given: Split | None,
    readers: Collection[BankReader],
    own: int,
    info: DatasetInfo,
    settings: MethodSettings,
    streamed: bool,
    runtime: Runtime,
) -> Store:
    """The given images, on the device or streamed, with room for so many of the run's own."""
    if streamed:
        sources: list[Source] = [ArraySource(*given)] if given else []
        sources += [BankSource(reader) for reader in readers if len(reader)]
        return StreamedStore(sources, own, info.shape, settings.shuffle_buffer, runtime)
    there = sum(map(len, readers)) + (len(given[0]) if given else 0)
    store = ImageStore(there + own, info.shape, runtime)
    if given:
        store.append(*given)
    for reader in readers:
        store.append_bank(reader)
    return store


class Examination:
    """The student on the test split once an epoch; keeps the weights of the epoch that did best there."""

    def __init__(self, teacher: nn.Module, student: nn.Module, test: Split, info: DatasetInfo, runtime: Runtime) -> None:
        self.student, self.info, self.runtime = student, info, runtime
        self.images, self.labels = test
        self.answers = predict(teacher, self.images, info, runtime).argmax(1)
        self.best: dict[str, Any] = {"acc1": -1.0, "epoch": 0, "model": {}}

    def hold(self, epoch: int) -> dict[str, float]:
        """Acc@1 and Agree@1 in percent after an epoch, counted from 0."""
        logits = predict(self.student, self.images, self.info, self.runtime)
        acc1, agree1 = accuracy(logits, self.labels), accuracy(logits, self.answers)
        if acc1 > self.best["acc1"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.student.state_dict().items()}
            self.best = {"acc1": acc1, "epoch": epoch + 1, "model": weights}
        return {"acc1": acc1, "agree1": agree1}


def _check_given(method: str, kind: str, banks: Sequence[Path], data: Path | None) -> None:
    """Refuse images that the method would not look at, and miss those that it needs."""
    if (kind in ("train", "dataset", "folder")) != (data is not None):
        needs = f"distils on transfer_set {kind}" if kind else "makes its images"
        wants = "give the images with --data" if data is None else "leave --data away"
        raise UserError(f"method {method}: {needs}; {wants} (it is for the control 'real' and for 'kd').")
    if METHODS[method].transfer and (kind == "bank") != bool(banks):
        wants = "give the bank with --bank" if not banks else "leave --bank away"
        raise UserError(f"method {method}: distils on transfer_set {kind}; {wants}.")


def _bank_meta(
    card: WeightsCard,
    readers: Mapping[Path, BankReader],
    settings: MethodSettings,
    seed: int,
    method: str,
    architecture: str,
    notes: Mapping[str, str],
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
        extra={"method": method, "student": architecture, **notes},
    )
