"""The student's stage: synthesise against it, distil it, round by round. No real training image is read.

The exceptions are there to be compared with and are marked as not data-free: the control `real`, and `kd` on a transfer set of
real images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.bank.format import FORMAT_VERSION, BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS, check_method
from dfkd.datasets.prepared import read_info, read_split
from dfkd.datasets.transfer import read_transfer_set, transfer_sha256
from dfkd.datasets.views import normalise, random_views, to_bytes, to_unit
from dfkd.distillation.objective import Objective
from dfkd.distillation.schedule import Turn, count_syntheses, count_turns, rate_at, turns
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.distillation.teacher import accuracy
from dfkd.errors import UserError
from dfkd.evaluation.predict import predict
from dfkd.files import file_sha256, write_json
from dfkd.history import History
from dfkd.methods import METHODS, KDSettings, MethodSettings, SampledSettings, transfer_set
from dfkd.models import build_model
from dfkd.models.adapter import MissingFeatures
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.plugins import code_hash, load
from dfkd.progress import progress, stop_request
from dfkd.provenance import Cost, revision, versions
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.synthesizer import FreshSynthesizer, Synthesizer, teacher_scores


def build_method(
    name: str, teacher: nn.Module, student: nn.Module, card: WeightsCard, settings: MethodSettings, runtime: Runtime
) -> tuple[Synthesizer, Objective]:
    """The two halves of a method.

    Raises:
        UserError: the teacher or the student lacks what the method needs, or the halves do not fit.
    """
    makes: type[Synthesizer] = load(METHODS[name].synthesizer)
    imitates: type[Objective] = load(METHODS[name].objective)
    if imitates.needs_labels and issubclass(makes, FreshSynthesizer):
        raise UserError(
            f"method {name}: {imitates.__name__} needs labelled images, and {makes.__name__} makes fresh ones without labels; "
            "give the method another objective."
        )
    try:
        objective = imitates(teacher, student, card.dataset, settings, runtime)
        return makes(teacher, student, card.dataset, settings, runtime, objective), objective
    except MissingFeatures as error:
        raise error.of_method(name) from None


class Run:
    """A student, its method and all that is counted on the way; knows how to make one turn, save and resume."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        objective: Objective,
        store: ImageStore,
        bank: BankWriter,
        settings: MethodSettings,
        seed: int,
        runtime: Runtime,
    ) -> None:
        self.synthesizer, self.objective, self.store, self.bank = synthesizer, objective, store, bank
        self.settings, self.seed, self.runtime, self.info = settings, seed, runtime, objective.info
        self.cost = Cost()
        self.made: dict[str, float] = {}  # the terms of the last synthesis
        self.sums = torch.zeros(len(objective.terms), device=runtime.device)
        self.steps = 0  # student steps that `sums` holds
        self._order: ShuffledPasses | None = None

    def synthesize(self, turn: Turn, stop: Any) -> None:
        """The synthesis that begins a round."""
        if turn.round == 0:
            seed_everything(self.seed, "distill", turn.epoch)
        made = self.synthesizer.synthesize(turn.epoch, stop)
        if len(made.images):
            self.bank.append_images(made.images, made.labels, made.scores)
            self.store.append(made.images, made.labels)
        if turn.round == 0:
            self.objective.begin_epoch(turn.epoch, rate_at(self.settings, turn.epoch))
        self.made, self._order = made.terms, None
        self.cost.images += made.count
        self.cost.optimiser_steps += made.optimiser_steps
        self.cost.teacher_queries += made.teacher_queries

    def distill(self, turn: Turn) -> None:
        """One student step, on a batch of the store or on fresh images."""
        size = self.settings.batch_size
        if isinstance(self.synthesizer, FreshSynthesizer):
            images, labels = self.synthesizer.batch(size), torch.empty(0, dtype=torch.int64)
            self.cost.images += size
        else:
            images, labels = self._stored(turn, size)
        self.sums += self.objective.step(self.runtime.images(images), labels)
        self.steps += 1
        self.cost.optimiser_steps += self.objective.optimiser_steps
        self.cost.teacher_queries += size

    def _stored(self, turn: Turn, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of the store in random views, normalised [B,C,H,W], and its labels [B]."""
        if not self.store.count:
            raise UserError("there is no image to distil on: the method makes none; give a bank of the teacher with --bank.")
        self._order = self._order or ShuffledPasses(self.store.count, size, self.seed, "distill order", turn.epoch, turn.round)
        index = self._order.batch(turn.step).to(self.runtime.device)
        views = random_views(self.store.images[index], self.info)
        return normalise(to_unit(views), self.info), self.store.labels[index]

    def keep_sample(self, epoch: int) -> None:
        """Every `sample_every` epochs, some of what is made for the student go into the bank, to be looked at."""
        own = self.settings
        if not (isinstance(self.synthesizer, FreshSynthesizer) and isinstance(own, SampledSettings)):
            return
        if (epoch + 1) % own.sample_every and epoch + 1 < own.epochs:
            return
        images = to_bytes(self.synthesizer.sample(own.sample_images))
        answers = predict(self.objective.teacher, images.cpu(), self.info, self.runtime).argmax(1).to(images.device)
        scores = teacher_scores(self.objective.teacher, images, answers, self.info, self.runtime)
        self.bank.append_images(images.cpu().contiguous(), answers.cpu(), scores)

    def row(self, epoch: int) -> dict[str, float]:
        """The figures of an epoch, and a fresh start for the sums. Raises a `UserError` when one is not finite."""
        row: dict[str, float] = {"epoch": epoch + 1, "lr": rate_at(self.settings, epoch)}
        if self.steps:
            row |= dict(zip(self.objective.terms, (self.sums / self.steps).tolist(), strict=True))
        row |= {f"g_{name}": value for name, value in self.made.items()} | {"images": self.store.count}
        for name, value in row.items():
            if not math.isfinite(value):
                raise UserError(f"epoch {epoch + 1}: {name} is not finite; lower lr (or lr_g) and run again.")
        self.sums.zero_()
        self.steps = 0
        return row

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
            "cost": self.cost.as_dict(),
            "made": self.made,
            "sums": self.sums.cpu(),
            "steps": self.steps,
            "blocks": self.bank.blocks,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; the bank is cut back to what it held then."""
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.cost, self.made, self.steps = Cost(**state["cost"]), state["made"], state["steps"]
        self.sums = state["sums"].to(self.runtime.device)
        self.bank.truncate(state["blocks"])

    def _parts(self) -> dict[str, Any]:
        own = {f"synthesizer {name}": part for name, part in self.synthesizer.parts().items()}
        return self.objective.parts() | own


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
    that print it), bank.lmdb (the run's own images, or samples of its generator), history.csv and cost.json beside it, and
    generator.safetensors if the method has a generator that lives for the whole run. Resumes from `checkpoints`.

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
    test_images, test_labels = read_split(test, "test")
    given = read_transfer_set(data, kind, info) if data is not None else None
    readers = {path: BankReader(path, teacher_sha256=card.sha256) for path in banks}
    lineage = {"teacher": card.sha256, **{f"bank {path.stem}": file_sha256(path) for path in banks}}
    if data is not None:
        lineage["data"] = transfer_sha256(data)
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
            "plugins": [code_hash("method", method), code_hash("model", card.architecture), code_hash("model", architecture)],
        },
    )
    seed_everything(seed, "distill")
    student = runtime.place(build_model(architecture, len(info.classes), info.channels, info.image_size))
    synthesizer, objective = build_method(method, teacher_model, student, card, settings, runtime)
    fresh = isinstance(synthesizer, FreshSynthesizer)
    if banks and fresh:
        raise UserError(f"method {method}: makes every batch afresh and reads no bank; leave --bank away.")
    teacher_answers = predict(teacher_model, test_images, info, runtime).argmax(1)
    best: dict[str, Any] = {"acc1": -1.0, "epoch": 0, "model": {}}
    first, rows = 0, []
    state = checkpoint.load()

    notes = synthesizer.notes | ({"transfer_set": settings.transfer_set} if isinstance(settings, KDSettings) else {})
    meta = _bank_meta(card, readers, settings, seed, method, architecture, notes)
    with (
        BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank,
        stop_request() as stop,
        progress(f"{method} {card.architecture} → {architecture}", count_turns(settings), state["turn"] if state else 0) as bar,
    ):
        there = sum(len(reader) for reader in readers.values()) + (len(given[0]) if given else 0)
        own = 0 if fresh else count_syntheses(settings) * getattr(settings, "synthesis_batch_size", 0)
        store = ImageStore(there + own, info.shape, runtime)
        run = Run(synthesizer, objective, store, bank, settings, seed, runtime)
        if state:
            run.load_state(state["run"])
            first, rows, best = state["turn"], state["rows"], state["best"]
        else:
            bank.truncate(0)
        if given:
            store.append(*given)
        for reader in (*readers.values(), *([] if fresh else [bank.reader()])):
            if len(reader):
                arrays = reader.load()
                store.append(arrays.images, arrays.labels)
        history = History(output.parent / "tensorboard", rows)
        for number, turn in itertools.islice(enumerate(turns(settings)), first, None):
            note = ""
            with run.cost.measure(runtime):
                if turn.step < 0:
                    run.synthesize(turn, stop)
                else:
                    run.distill(turn)
            if turn.last:
                run.keep_sample(turn.epoch)
                row = run.row(turn.epoch)
                logits = predict(student, test_images, info, runtime)
                row |= {"acc1": accuracy(logits, test_labels), "agree1": accuracy(logits, teacher_answers)}
                history.append(row)
                if row["acc1"] > best["acc1"]:
                    weights = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
                    best = {"acc1": row["acc1"], "epoch": turn.epoch + 1, "model": weights}
                note = f"epoch {turn.epoch + 1}  Acc@1 {row['acc1']:.2f}  Agree@1 {row['agree1']:.2f}"
                note += f"  loss {row['loss']:.3f}" if "loss" in row else ""
            if turn.last or stop:
                checkpoint.save({"turn": number + 1, "run": run.state(), "rows": history.rows, "best": best})
            bar.advance(note=note)
            if stop:
                stop.stop()
        bank.publish(output.parent / "bank.lmdb")

    last = history.rows[-1]
    history.write_csv(output.parent / "history.csv")
    history.close()
    write_json(output.parent / "cost.json", {**run.cost.as_dict(), "hardware": runtime.describe()})
    student_card = WeightsCard(
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
        notes=notes,
    )
    saved = save_weights(output, student, student_card)
    if synthesizer.generator is not None:
        generator_card = student_card.model_copy(
            update={"architecture": f"{method} generator", "role": "generator", "metrics": {}}
        )
        save_weights(output.parent / "generator.safetensors", synthesizer.generator, generator_card)
    student.load_state_dict(best["model"])
    measured = {"acc1": best["acc1"], "epoch": float(best["epoch"])}
    save_weights(output.parent / "best.safetensors", student, student_card.model_copy(update={"metrics": measured}))
    checkpoint.remove()
    return saved


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
