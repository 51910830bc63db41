"""A training that diverges: found at its first step, told with the term, and gone on with from the last good state if asked.

A loss that is not finite, or beyond `LIMIT`, is divergence. It is looked for on the device, so that no step waits for the host;
the stage asks before it saves, and so never saves a state that is lost. Going back is a new attempt of the stage: it resumes
from its checkpoint as after a kill, at half the rate, and the checkpoint remembers how often.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from dfkd.checkpoint import STATE
from dfkd.errors import UserError
from dfkd.files import atomic_path
from dfkd.settings import OnDivergencePolicy, StageSettings

logger = logging.getLogger(__name__)

LIMIT = 1e8
FACTOR = 0.5  # what a rollback multiplies the rates by
MOST = 5  # rollbacks of one stage
RATES = ("lr", "lr_g", "lr_z", "min_lr", "head_lr", "lr_images")
FILE = "rollbacks.json"  # in the checkpoint's folder

Result = TypeVar("Result")


class Divergence(UserError):
    """A term of a stage's loss is lost."""

    def __init__(self, what: str, step: int, term: str, rates: str = "lr") -> None:
        """`what` names the stage, `rates` what may be too high; steps are counted from 0, -1 stands for all of them."""
        self.what, self.step, self.term, self.rates = what, step, term, rates
        where = f"at step {step + 1}" if step >= 0 else "in any step"
        super().__init__(
            f"{what}: {term} is not finite, or beyond {LIMIT:g}, {where}; the last good state is kept: "
            f"lower {rates}, or run the same command with --on-divergence rollback, which goes on from there at half the rate."
        )

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return Divergence, (self.what, self.step, self.term, self.rates)


class Watch:
    """Remembers, on the device, the first step at which a term was lost, and the term."""

    def __init__(self, what: str, terms: Sequence[str], device: torch.device, rates: str = "lr") -> None:
        self.what, self.terms, self.rates = what, tuple(terms), rates
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.term = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def see(self, step: int, values: torch.Tensor) -> None:
        """The terms [T] of a step, or the only one as a scalar."""
        lost = ~(values.detach().reshape(-1).abs() <= LIMIT)  # NaN compares as False
        new = (self.first < 0) & lost.any()
        self.first = torch.where(new, step, self.first)
        self.term = torch.where(new, lost.long().argmax(), self.term)

    def check(self) -> None:
        """Raises `Divergence` if a term was lost. Waits for the device: once an epoch, and before a state is saved."""
        first = int(self.first)
        if first >= 0:
            raise Divergence(self.what, first, self.terms[int(self.term)], self.rates)


def check_terms(what: str, step: int, terms: dict[str, float], rates: str = "lr") -> None:
    """Raises `Divergence` for the first of these terms that is lost."""
    for name, value in terms.items():
        if not abs(value) <= LIMIT:
            raise Divergence(what, step, name, rates)


def rollbacks(folder: Path) -> list[dict[str, Any]]:
    """The rollbacks of the stage that has this checkpoint folder: `step`, counted from 1, and `term` of each."""
    try:
        return list(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError):
        return []


def lowered(folder: Path) -> float:
    """What the rates of that stage are multiplied by."""
    return FACTOR ** len(rollbacks(folder))


Settings = TypeVar("Settings", bound=StageSettings)


def slowed(settings: Settings, folder: Path) -> Settings:
    """The settings with every rate lowered by what was rolled back so far; those of the augment stage's own network too."""
    factor = lowered(folder)
    if factor == 1:
        return settings
    changed: dict[str, Any] = {name: factor * getattr(settings, name) for name in RATES if hasattr(settings, name)}
    if (inner := getattr(settings, "bank_diffusion", None)) is not None:
        changed["bank_diffusion"] = inner.model_copy(update={"lr": factor * inner.lr})
    return settings.model_copy(update=changed)


def rollback_notes(folder: Path) -> dict[str, str]:
    """What a result says of them; nothing if there were none."""
    done = rollbacks(folder)
    told = "; ".join(f"step {entry['step']} ({entry['term']})" for entry in done)
    return {"rollbacks": f"{told}: rates × {FACTOR ** len(done):g}"} if done else {}


def attempt(stage: Callable[[], Result], folder: Path, policy: OnDivergencePolicy) -> Result:
    """Run a stage; with `rollback`, run it again from its last good state whenever it diverges, at most `MOST` times.

    A state from which it diverges no later than before was on its way already: then the stage begins anew, at the lower rate.

    Args:
        folder: the stage's checkpoint folder.

    Raises:
        Divergence: the policy is `stop`, or going back does not help.
    """
    while True:
        try:
            return stage()
        except Divergence as divergence:
            done = rollbacks(folder)
            if policy == "stop" or len(done) >= MOST:
                raise
            late = bool(done) and divergence.step < done[-1]["step"]
            if late:
                (folder / STATE).unlink(missing_ok=True)
            done.append({"step": divergence.step + 1, "term": divergence.term})
            with atomic_path(folder / FILE) as temporary:
                temporary.write_text(json.dumps(done))
            where = "anew" if late else "from the last good state"
            factor = FACTOR ** len(done)
            logger.warning("%s: rollback %d: going on %s, rates × %g", divergence, len(done), where, factor)
