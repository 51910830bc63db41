"""What the objectives of the literature share: L = ce CE(S(x), y) + kd T² KL(T || S) + w L_method, and how features are seen.

Every feature map is the output of a layer that is named: by the model (`Classifier.layers`), or by the settings
`student_layers` and `teacher_layers`. A pair that an objective cannot take is refused before anything is trained. Networks and
heads may run in lower precision; logits, features and losses are float32 at least.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.kd import imitation
from dfkd.distillation.objective import Batch, Objective
from dfkd.errors import UserError
from dfkd.methods.kd import ObjectiveSettings
from dfkd.models.adapter import MissingFeatures
from dfkd.models.classifier import Layers
from dfkd.models.taps import Taps
from dfkd.runtime import Runtime, wide

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass
class Seen:
    """What is seen of a network in a forward pass, float32 at least."""

    logits: torch.Tensor  # [B,K]
    maps: list[torch.Tensor]  # [B,C_i,H_i,W_i] each
    pooled: torch.Tensor  # [B,D]; [0] where nobody asks for it


class Observer:
    """A network whose named layers are looked at while it runs."""

    def __init__(self, network: nn.Module, layers: Sequence[str], pooled: bool) -> None:
        """Raises a `UserError` that names a layer which does not exist, or that there is no penultimate feature."""
        self.network, self.pooled, self.taps = network, pooled, Taps(network, layers)
        self.feature_dim: int = network.feature_dim if pooled else 0  # type: ignore[assignment]

    def __call__(self, images: torch.Tensor) -> Seen:
        """Normalised images [B,C,H,W] → what is asked for."""
        if self.pooled:
            logits, features = self.network(images, return_features=True)
            pooled = wide(features[-1])
        else:
            logits, pooled = self.network(images), images.new_empty(0)
        return Seen(wide(logits), [wide(value) for value in self.taps.take().values()], pooled)

    @torch.no_grad()
    def shapes(self, info: DatasetInfo, runtime: Runtime) -> list[Shape]:
        """[C,H,W] of each map, by a forward pass of one empty image that leaves the network as it was."""
        training = self.network.training
        self.network.eval()
        maps = self(runtime.images(torch.zeros(1, *info.shape, device=runtime.device))).maps
        self.network.train(training)
        return [tuple(value.shape[1:]) for value in maps]


class DataObjective(Objective):
    """Cross-entropy, imitation, and the term `settings.term` if there is one: what looks at logits alone builds on this.

    A subclass with a term of its own gives `own_of_logits`.
    """

    settings: ObjectiveSettings
    shareable = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: ObjectiveSettings,
        runtime: Runtime,
        trained: tuple[nn.Module, ...] = (),
    ) -> None:
        weighed = [name for name in ("ce", "kd") if getattr(settings, name)]
        self.terms = ("loss", *weighed, *([settings.term] if settings.term else []))  # type: ignore[misc]
        self.needs_labels = bool(settings.ce) or settings.looks_at_labels  # type: ignore[misc]
        super().__init__(teacher, student, info, settings, runtime, trained)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum and its terms."""
        answers = wide(self.teacher_answers(batch))
        with self.runtime.autocast():
            logits = self.student(batch.images)
        logits = wide(logits)
        return self.summed(logits, answers, batch, self.own_of_logits(logits, answers, batch))

    def own_of_logits(self, student: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        """The objective's own term of logits [B,K], a scalar without its weight; None where it has none."""
        return None

    def summed(
        self, student: torch.Tensor, teacher: torch.Tensor, batch: Batch, own: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """L = ce CE + kd T² KL + w `own`, and the terms, of logits [B,K]. What has no weight is left out."""
        settings, terms = self.settings, {}
        if settings.ce:
            terms["ce"] = self.cross_entropy(student, batch)
        if settings.kd:
            terms["kd"] = self.imitation(student, teacher)
        if own is not None:
            terms[settings.term] = own
        return {"loss": torch.stack([getattr(settings, name) * term for name, term in terms.items()]).sum(), **terms}

    def cross_entropy(self, student: torch.Tensor, batch: Batch) -> torch.Tensor:
        """CE of the student's logits [B,K] with the labels."""
        return F.cross_entropy(student, batch.labels)

    def imitation(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The distance of logits [B,K] that `settings.loss` names; KL times T²."""
        return imitation(student, teacher, self.settings)


class FeatureObjective(DataObjective):
    """An objective with a term of its own on what is seen of both networks. A subclass gives `own`, and its heads.

    One that compares the images of a batch asks for the `whole` of what is seen of them.

    Heads are trained with the student: its optimiser, rate and weight decay, as in the benchmark's code. With settings that
    are no `FeatureSettings` the layers are the networks' own.
    """

    needs_features = True
    sees: ClassVar[str] = "maps"  # `maps`, `hint`, `last`, `preacts`, `stem` (stem and maps), or `` for none
    pooled: ClassVar[bool] = False  # whether the pooled feature is looked at
    paired: ClassVar[bool] = True  # one map of the student to one of the teacher

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: ObjectiveSettings, runtime: Runtime
    ) -> None:
        self.settings, self.name = settings, type(self).__name__
        self.observed = observers(teacher, student, settings, self.sees, self.pooled)
        ours, theirs = shapes_of(self.name, self.observed, info, runtime, self.paired)
        self.check(ours, theirs)
        self.heads = runtime.place(self.build(ours, theirs))
        self.size = sum(parameter.numel() for parameter in self.heads.parameters())
        if self.size:
            logger.info("%s: heads of %s parameters are trained with the student", self.name, f"{self.size:,}")
        super().__init__(teacher, student, info, settings, runtime, trained=(self.heads,))

    def check(self, student: list[Shape], teacher: list[Shape]) -> None:
        """Refuse pairs of maps [C,H,W] that the objective cannot take, by a `UserError` with the reason."""

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The heads for maps [C,H,W] of these shapes, trained with the student; freshly drawn."""
        return nn.ModuleDict()

    @abstractmethod
    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The objective's own term, a scalar without its weight; the teacher's side has no graph."""

    def through(self, head: str, *values: torch.Tensor) -> torch.Tensor:
        """What a head gives, float32 at least; the head itself runs as the networks do."""
        with self.runtime.autocast():
            return wide(self.heads[head](*values))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum and its terms."""
        with torch.no_grad(), self.runtime.autocast():
            teacher = self.observed["teacher"](batch.images)
        with self.runtime.autocast():
            student = self.observed["student"](batch.images)
        return self.summed(student.logits, teacher.logits, batch, self.own(student, teacher, batch))

    @property
    def notes(self) -> dict[str, str]:
        """The size of the heads, if there are any."""
        return {"heads": f"{self.size} parameters trained with the student"} if self.size else {}

    def parts(self) -> dict[str, object]:
        """Student, optimiser and heads."""
        return super().parts() | {"heads": self.heads}


def observers(
    teacher: nn.Module, student: nn.Module, settings: ObjectiveSettings, kind: str, pooled: bool = False
) -> dict[str, Observer]:
    """Both networks, looked at where the settings say, or where the networks themselves do for features of a kind."""
    chosen = {role: getattr(settings, f"{role}_layers", []) for role in ("teacher", "student")}
    networks = {"teacher": teacher, "student": student}
    return {
        role: Observer(network, layer_names(network, role, kind, chosen[role]), pooled) for role, network in networks.items()
    }


def shapes_of(
    name: str, observed: Mapping[str, Observer], info: DatasetInfo, runtime: Runtime, paired: bool = True
) -> tuple[list[Shape], list[Shape]]:
    """[C,H,W] of the student's maps and of the teacher's; if they are paired, as many of the one as of the other.

    Raises:
        UserError: their numbers differ, or a layer gives something else; the sentence begins with `name`.
    """
    ours, theirs = (observed[role].shapes(info, runtime) for role in ("student", "teacher"))
    if paired and len(ours) != len(theirs):
        raise UserError(
            f"{name}: the student has {len(ours)} feature maps and the teacher {len(theirs)}; "
            "name the layers to pair in student_layers and teacher_layers."
        )
    for side, shapes in (("student", ours), ("teacher", theirs)):
        odd = [shape for shape in shapes if len(shape) != 3]
        if odd:
            raise UserError(f"{name}: a layer of the {side} gives {odd[0]} for an image, not [C,H,W]; name another.")
    return ours, theirs


def layer_names(network: nn.Module, role: str, kind: str, chosen: Sequence[str]) -> list[str]:
    """The layers whose outputs are looked at: the chosen ones, or the network's own of a kind.

    Raises:
        UserError: the network does not say which of its layers those are.
    """
    if chosen:
        return list(chosen)
    layers = getattr(network, "layers", Layers())
    found: dict[str, tuple[str, ...]] = {
        "": (),
        "maps": layers.maps,
        "hint": layers.maps[1:2] or layers.maps[-1:],  # f_2 of the benchmark's list
        "last": layers.maps[-1:],
        "preacts": layers.preacts,
        "stem": (layers.stem, *layers.maps) if layers.stem else (),
    }
    if kind and not found[kind]:
        what = {"preacts": "feature maps before their activation", "stem": "the output of the stem"}.get(kind, "feature maps")
        own = getattr(network, "name", type(network).__name__)
        raise MissingFeatures(own, what, f"it does not name such layers; name them in {role}_layers")
    return list(found[kind])


def to_smaller(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps [B,C,H,W] of one size: what is larger along an axis is average-pooled to the smaller."""
    if one.shape[2:] == other.shape[2:]:
        return one, other
    height, width = (min(sides) for sides in zip(one.shape[2:], other.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(one, (height, width)), F.adaptive_avg_pool2d(other, (height, width))
