"""The student's stage: synthesise against it, distil it, round by round. No real training image is read.

The exceptions are there to be compared with and are marked as not data-free: the control `real`, and `kd` on a transfer set of
real images.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Mapping, Sequence
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
from dfkd.distillation.answers import CacheOptions, open_answers
from dfkd.distillation.first_stage import read_first_stage
from dfkd.distillation.given import Given, read_given
from dfkd.distillation.run import Run, build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, turn_at, turns
from dfkd.distillation.store import ImageStore
from dfkd.distillation.stream import stream_notes
from dfkd.distillation.teacher import accuracy
from dfkd.divergence import rollback_notes, slowed
from dfkd.errors import UserError
from dfkd.evaluation.predict import predict
from dfkd.files import file_sha256, together, write_json
from dfkd.history import History
from dfkd.methods import METHODS, MethodSettings, TransferSettings
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, load_model, read_card, save_weights
from dfkd.plugins import code_hash, load
from dfkd.progress import Stopped, progress, stop_request
from dfkd.provenance import revision, versions
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.synthesizer import FreshSynthesizer

logger = logging.getLogger(__name__)


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
    first_stage: Path | None = None,
    cache: CacheOptions | None = None,
    packed: Path | None = None,
) -> WeightsCard:
    """Distil `architecture` from the teacher by a method, on the banks and on images made against the student.

    Writes `output` (last epoch) and its card, best.safetensors (best Acc@1 on the test split, for comparison with papers
    that print it), bank.lmdb (the run's own images, or samples of its generator), history.csv, timing.csv and cost.json beside
    it, and generator.safetensors if the method has a generator that lives for the whole run. Resumes from `checkpoints`.

    Args:
        banks: image banks of this teacher, sampled uniformly together with the run's own.
        test: prepared test split; measured once an epoch, trained on never.
        data: prepared data set or folder of images: what `real` and the `kd` methods distil on, if not on a bank.
        first_stage: what the first stage of a method in two stages has kept.
        cache: where the teacher's answers are kept and how many; decides time alone.
        packed: the packed file that holds the training images of `data`, if that was prepared with `keep_packed`.

    Raises:
        UserError: a bank of another teacher, an unknown method, a transfer set or a first stage that does not fit, a model
            that cannot take the images or the method.
    """
    check_method(method)
    card = read_card(teacher)
    if read_info(test).classes != card.dataset.classes:
        raise UserError(f"{test}: its classes are not those of the teacher {teacher}; prepare the teacher's data set.")
    with contextlib.closing(read_given(method, settings, card, banks, data, packed)) as given:
        return _distill(
            teacher, given, architecture, test, settings, seed, output, checkpoints, runtime, method, first_stage, cache
        )


def _distill(
    teacher: Path,
    given: Given,
    architecture: str,
    test: Path,
    settings: MethodSettings,
    seed: int,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    method: str,
    first_stage: Path | None,
    cache: CacheOptions | None,
) -> WeightsCard:
    """The stage, with the images that it was given."""
    teacher_model, card = load_model(teacher, runtime)
    info, lineage = card.dataset, given.lineage
    begun = read_first_stage(first_stage, method, architecture, settings, seed, lineage)
    if begun:
        lineage = lineage | {"first stage": begun[1].sha256}
    fresh = issubclass(load(METHODS[method].synthesizer), FreshSynthesizer)
    own = 0 if fresh else count_syntheses(settings) * getattr(settings, "synthesis_batch_size", 0)
    streamed = given.streamed(settings, own, info.shape, runtime)
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
    if begun:
        objective.start_from(begun[0])
    if given.readers and fresh:
        raise UserError(f"method {method}: makes every batch afresh and reads no bank; leave --bank away.")
    examination = Examination(teacher_model, student, read_split(test, "test"), info, runtime)
    state = checkpoint.load()
    first = state["turn"] if state else 0
    history = History(output.parent / "history.csv", output.parent / "tensorboard")

    notes = synthesizer.notes | objective.notes | (begun[1].notes if begun else {}) | rollback_notes(checkpoint.folder)
    notes |= {"transfer_set": settings.transfer_set} if isinstance(settings, TransferSettings) else {}
    notes |= stream_notes(streamed, settings)
    meta = _bank_meta(card, given.readers, chosen, seed, method, architecture, notes)
    store = given.store(own, info.shape, settings, streamed, runtime)
    with (
        contextlib.closing(store),
        BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank,
        stop_request(runtime.ranks.agreement) as stop,
        progress(f"{method} {card.architecture} → {architecture}", count_turns(settings), first) as bar,
    ):
        run = Run(synthesizer, objective, store, bank, settings, seed, runtime, stop)
        objective.begin(store)
        if state:
            run.load_state(state["run"])
            history.load_state(state)
            examination.best = state["best"]
        else:
            bank.truncate(0)
        with stop.at_once():
            if not fresh:
                store.append_bank(bank.reader())
                if not own and isinstance(store, ImageStore):
                    _keep_answers(run, store, card, cache or CacheOptions())
                elif not own:
                    logger.info("the teacher's answers are not kept: the images are streamed")

        def keep(done: int) -> None:
            checkpoint.save({"turn": done, "run": run.state(), "best": examination.best, **history.state()})

        def measure(epoch: int) -> str:
            """The end of an epoch: its row of the history, which is returned as words."""
            with stop.at_once():
                measured = examination.hold(epoch)
            run.keep_sample(epoch)
            trained = run.steps * settings.batch_size
            row = run.row(epoch) | measured
            history.append(row, run.cost.seconds, trained)
            if history.shows(settings.epochs):
                history.show("synthesised", run.shown)
            loss = f"  loss {row['loss']:.3f}" if "loss" in row else ""
            return f"epoch {epoch + 1}  Acc@1 {row['acc1']:.2f}  Agree@1 {row['agree1']:.2f}{loss}"

        former = turn_at(settings, first - 1) if first else None
        if former and former.last and len(history.rows) == former.epoch:  # a signal came while the epoch was measured
            measure(former.epoch)
            keep(first)
        for number, turn in itertools.islice(enumerate(turns(settings)), first, None):
            note = ""
            with run.cost.measure(runtime):
                if turn.step < 0:
                    run.synthesize(turn, stop)
                else:
                    try:
                        run.distill(turn)
                    except Stopped:  # while images were waited for
                        keep(number)
                        raise
            if turn.last:
                run.watch.check()
                with contextlib.suppress(Stopped):  # measured when the stage goes on
                    note = measure(turn.epoch)
            if turn.last or stop:
                keep(number + 1)
            bar.advance(note=note)
            if stop:
                run.publish_answers()
                stop.stop()
        run.publish_answers()
        last = history.rows[-1]
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
        with together():
            with stop.at_once():
                bank.publish(output.parent / "bank.lmdb")
            history.publish()
            write_json(output.parent / "cost.json", {**run.cost.as_dict(), "hardware": runtime.describe()})
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


def _keep_answers(run: Run, store: ImageStore, card: WeightsCard, options: CacheOptions) -> None:
    """Keep the teacher's answers to images that never change, where they are all that the objective asks for."""
    settings, objective = run.settings, run.objective
    if run.runtime.ranks.world > 1:
        logger.info("the teacher's answers are not kept: several processes ask it, each for its part of a batch")
        return
    if objective.needs_features:
        logger.info("the teacher's answers are not kept: %s looks at its features too", type(objective).__name__)
        return
    draws = settings.batch_size * (count_turns(settings) - count_syntheses(settings))
    with run.cost.measure(run.runtime):
        answers = open_answers(objective.teacher, card, store, draws, settings.batch_size, run.runtime, options)
    if answers is not None:
        run.keep_answers(answers)


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
