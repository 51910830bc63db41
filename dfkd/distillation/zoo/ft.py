"""FT: the student imitates factors of the teacher's last map (Kim et al., arXiv 1802.04977, in the benchmark's form).

First stage, without labels and without the student: a paraphraser of the teacher's last map f_T learns to give it back,
L = mean (decoder(encoder(f_T)) − f_T)². It is frozen then. Main stage: a translator, trained with the student, brings the
student's last map to the size of the factor F_T = encoder(f_T):

    L_FT = mean_{b,hw} |A(translator(f_S)) − A(F_T)|,   A(F) = N(vec(mean_c F_c²))

`form: code` is that: the benchmark's code compares where the factors are strong, not the factors. `form: paper` compares the
factors, flattened and divided by their L2 norms, by the L1 norm, mean over the batch; its scale is another, so `ft` wants
another value. The larger of two maps is average-pooled first. The encoder goes without the decoder in the main stage.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.at import attention
from dfkd.distillation.zoo.first_stage import FirstStage
from dfkd.distillation.zoo.objective import FeatureObjective, Observer, Seen, Shape, layer_names, to_smaller
from dfkd.methods.kd_stages import FTSettings
from dfkd.runtime import Runtime, wide

SLOPE = 0.1  # of the leaky ReLU


def stack(widths: list[int], transposed: bool = False, norm: bool = False) -> nn.Sequential:
    """3×3 convolutions from width to width, each followed by a leaky ReLU, and by a BatchNorm before it with `norm`."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        between = [nn.BatchNorm2d(outputs)] if norm else []
        layers += [kind(inputs, outputs, 3, 1, 1), *between, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Maps [B,C,H,W] → factors [B,C',H,W] → the maps again."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = stack([channels, channels, factors, factors])
        self.decoder = stack([factors, factors, channels, channels], transposed=True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """What is given back of the maps."""
        return self.decoder(self.encoder(maps))


def translator(channels: int, factors: int) -> nn.Sequential:
    """The student's maps [B,channels,H,W] → factors [B,factors,H,W]."""
    return stack([channels, channels, factors, factors], norm=True)


def factor_loss(student: torch.Tensor, teacher: torch.Tensor, form: Literal["code", "paper"] = "code") -> torch.Tensor:
    """The distance of factors [B,C,H,W]; in the form `code` their channels may differ."""
    ours, theirs = to_smaller(student, teacher)
    if form == "code":
        return F.l1_loss(attention(ours), attention(theirs))
    return (F.normalize(ours.flatten(1), dim=1) - F.normalize(theirs.flatten(1), dim=1)).abs().sum(1).mean()


def factors_of(teacher: Shape, settings: FTSettings) -> int:
    """Channels of a factor of a map [C,H,W]."""
    return max(1, int(teacher[0] * settings.factor_rate))


class Paraphrasing(FirstStage):
    """The first stage: the paraphraser; the student takes no part in it."""

    role = "paraphraser"
    settings: FTSettings

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: FTSettings, runtime: Runtime
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime)
        self.observed = Observer(teacher, layer_names(teacher, "teacher", "last", settings.teacher_layers[-1:]), pooled=False)
        (shape,) = self.observed.shapes(info, runtime)
        self.kept = runtime.place(Paraphraser(shape[0], factors_of(shape, settings)))
        self.trained = [self.kept]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """The mean square of what is not given back."""
        with torch.no_grad(), self.runtime.autocast():
            (maps,) = self.observed(images).maps
        with self.runtime.autocast():
            given = self.kept(maps)
        return F.mse_loss(wide(given), maps)

    @property
    def notes(self) -> dict[str, str]:
        """The size of the paraphraser."""
        return {"paraphraser": f"{sum(parameter.numel() for parameter in self.kept.parameters())} parameters"}


class FT(FeatureObjective):
    """The main stage: the translator learns the frozen paraphraser's factors together with the student."""

    sees: ClassVar[str] = "last"
    settings: FTSettings

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The translator, and beside the heads the paraphraser, whose weights `start_from` brings."""
        factors = factors_of(teacher[-1], self.settings)
        with torch.random.fork_rng(devices=[]):
            self.paraphraser = Paraphraser(teacher[-1][0], factors).eval().requires_grad_(False)
        return nn.ModuleDict({"translator": translator(student[-1][0], factors)})

    def start_from(self, state: dict[str, torch.Tensor]) -> None:
        """Take what the first stage has kept: the paraphraser, which stays as it is."""
        self.paraphraser.load_state_dict(state)
        self.runtime.place(self.paraphraser)

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The distance of the factors."""
        ours = self.through("translator", student.maps[-1])
        with torch.no_grad(), self.runtime.autocast():
            theirs = wide(self.paraphraser.encoder(teacher.maps[-1]))
        return factor_loss(ours, theirs, self.settings.form)
