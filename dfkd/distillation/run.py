"""A run of a method: its two halves, the images that they share, one turn after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dfkd.bank.writer import BankWriter
from dfkd.datasets.views import Boxes, Views, denormalise, draw_training_views, normalise, to_bytes, to_unit
from dfkd.distillation.answers import AnswerCache, Draw, ahead
from dfkd.distillation.objective import Batch, Objective
from dfkd.distillation.schedule import Turn, rate_at
from dfkd.distillation.store import Fetched
from dfkd.distillation.stream import Store
from dfkd.divergence import Watch, check_terms
from dfkd.errors import UserError
from dfkd.evaluation.predict import predict
from dfkd.history import SHOWN
from dfkd.methods import METHODS, MethodSettings, SampledSettings
from dfkd.models.adapter import MissingFeatures
from dfkd.models.weights import WeightsCard
from dfkd.plugins import load
from dfkd.progress import StopRequest
from dfkd.provenance import Cost
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.synthesizer import FreshSynthesizer, Synthesizer, teacher_scores


def build_method(
    name: str, teacher: nn.Module, student: nn.Module, card: WeightsCard, settings: MethodSettings, runtime: Runtime
) -> tuple[Synthesizer, Objective]:
    """The two halves of a method.

    Raises:
        UserError: the teacher or the student lacks what the method needs, the halves do not fit, or they are no work that
            several processes can share.
    """
    makes: type[Synthesizer] = load(METHODS[name].synthesizer)
    imitates: type[Objective] = load(METHODS[name].objective)
    if runtime.ranks.world > 1:
        for half in (makes, imitates):
            if not half.shareable:
                raise UserError(
                    f"method {name}: {half.__name__} is not made to share a batch among processes; run it on one GPU "
                    "(--ranks 1, or the resource gpu of its rule)."
                )
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
        store: Store,
        bank: BankWriter,
        settings: MethodSettings,
        seed: int,
        runtime: Runtime,
        stop: StopRequest | None = None,
    ) -> None:
        self.synthesizer, self.objective, self.store, self.bank = synthesizer, objective, store, bank
        self.stop = StopRequest() if stop is None else stop  # one that is not asked for is false
        self.settings, self.seed, self.runtime, self.info = settings, seed, runtime, objective.info
        self.cost = Cost()
        self.made: dict[str, float] = {}  # the terms of the last synthesis
        self.sums = torch.zeros(len(objective.terms), device=runtime.device)
        self.watch = Watch("distil", objective.terms, runtime.device)
        self.watched = 0  # student steps since the run began
        self.steps = 0  # student steps that `sums` holds
        self.shown: torch.Tensor | None = None  # some of the images that were made last, uint8 [N,C,H,W]
        self.answers: AnswerCache | None = None
        self._order: Any = None  # the passes over the store in this round
        self._later: Any = None  # the same, looked at ahead of time

    def keep_answers(self, answers: AnswerCache) -> None:
        """Have the teacher's answers to the images of the store kept. Call it after a state is loaded."""
        self.answers = answers
        self.cost.teacher_queries += answers.queries  # by which it was tried

    def publish_answers(self) -> None:
        """Leave the answers that were kept to other runs. Call it when this one ends or is interrupted."""
        if self.answers is not None:
            with self.cost.measure(self.runtime):
                self.answers.publish()

    def synthesize(self, turn: Turn, stop: Any) -> None:
        """The synthesis that begins a round."""
        if turn.round == 0:
            seed_everything(self.seed, "distill", turn.epoch)
        self.store.expect(*self._order_keys(turn))
        made = self.synthesizer.synthesize(turn.epoch, stop)
        check_terms("synthesis", self.watched, made.terms, "lr_g")
        if len(made.images):
            self.bank.append_images(made.images, made.labels, made.scores)
            self.store.append(made.images, made.labels)
            self.shown = made.images
        if turn.round == 0:
            self.objective.begin_epoch(turn.epoch, rate_at(self.settings, turn.epoch))
        self.made, self._order, self._later = made.terms, None, None
        self.cost.images += made.count
        self.cost.optimiser_steps += made.optimiser_steps
        self.cost.teacher_queries += made.teacher_queries

    def distill(self, turn: Turn) -> None:
        """One student step, on a batch of the store or on fresh images.

        Raises:
            Stopped: a signal came while the images were waited for; nothing has changed.
        """
        size, asked = self.settings.batch_size, self.settings.batch_size
        ranks = self.runtime.ranks
        if isinstance(self.synthesizer, FreshSynthesizer):
            batch = Batch(self.synthesizer.batch(size), torch.empty(0, dtype=torch.int64), share=ranks.share(size))
            self.cost.images += size
            if turn.last:
                self.shown = to_bytes(denormalise(batch.images[:SHOWN], self.info))
        else:
            before = self.answers.queries if self.answers else 0
            batch = self._stored(turn, size)
            asked = self.answers.queries - before if self.answers else size
        terms = self.objective.step(batch._replace(images=self.runtime.images(batch.images)))
        self.watch.see(self.watched, terms)
        self.sums += terms
        self.steps += 1
        self.watched += 1
        self.cost.optimiser_steps += self.objective.optimiser_steps
        self.cost.teacher_queries += asked
        self.cost.cached_answers += size - asked

    def _stored(self, turn: Turn, size: int) -> Batch:
        """A batch of the store, in random views."""
        if not self.store.count:
            raise UserError("there is no image to distil on: the method makes none; give a bank of the teacher with --bank.")
        if self._order is None:
            self._order = self.store.passes(size, *self._order_keys(turn), steps=self.settings.kd_steps)
        with self.stop.at_once():
            found = self.store.fetch(self._order, turn.step)
        views = draw_training_views(size, self.info, self.store.cropped)
        batch = self._batch(found, views)
        if self.answers is None or not isinstance(views, Views):
            return batch
        rows = self._order.batch(turn.step)  # on the CPU: nothing waits for the device
        return batch._replace(answers=self.answers.answers((rows, views), batch.images, self._following(turn)))

    def _batch(self, found: Fetched, views: Views | Boxes) -> Batch:
        """What teacher and student are shown of a batch of the store; of several processes each has its part."""
        ranks, size = self.runtime.ranks, len(found.labels)
        seen = views.part(ranks.part(size)).apply(ranks.mine(found.images), self.info)
        images = self.runtime.images(normalise(to_unit(seen), self.info))
        return Batch(images, ranks.mine(found.labels), ranks.mine(found.rows), share=ranks.share(size))

    def _order_keys(self, turn: Turn) -> tuple[int | str, ...]:
        """What the order of a round's images is drawn by."""
        return self.seed, "distill order", turn.epoch, turn.round

    def _following(self, turn: Turn) -> Iterator[Draw]:
        """What the student will see in the steps of this round that follow."""
        own = self.settings
        if self._later is None:
            self._later = self.store.passes(own.batch_size, *self._order_keys(turn), steps=own.kd_steps)
        return ahead((self._later.batch(step) for step in range(turn.step + 1, own.kd_steps)), self.info)

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
        """The figures of an epoch, and a fresh start for the sums."""
        row: dict[str, float] = {"epoch": epoch + 1, "lr": rate_at(self.settings, epoch)}
        if self.made and (rate := self.synthesizer.rate) is not None:
            row["lr_g"] = rate
        if self.steps:
            row |= dict(zip(self.objective.terms, (self.sums / self.steps).tolist(), strict=True))
        row |= {f"g_{name}": value for name, value in self.made.items()} | {"images": self.store.count}
        self.sums.zero_()
        self.steps = 0
        return row

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs. Raises `Divergence` in place of a state that is lost."""
        self.watch.check()
        return {
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
            "cost": self.cost.as_dict(),
            "made": self.made,
            "sums": self.sums.cpu(),
            "steps": self.steps,
            "watched": self.watched,
            "shown": None if self.shown is None else self.shown[:SHOWN].cpu(),
            "blocks": self.bank.blocks,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; the bank is cut back to what it held then."""
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.cost, self.made, self.steps = Cost(**state["cost"]), state["made"], state["steps"]
        self.sums, self.watched = state["sums"].to(self.runtime.device), state["watched"]
        self.shown = state.get("shown")
        self.bank.truncate(state["blocks"])

    def _parts(self) -> dict[str, Any]:
        own = {f"synthesizer {name}": part for name, part in self.synthesizer.parts().items()}
        return self.objective.parts() | own
