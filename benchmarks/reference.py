"""The original's habits, for comparison: the same losses as the package's, computed the way the field's public code does.

fp32, NCHW, eager. Frozen networks keep `requires_grad`, so that their weight gradients are computed and thrown away; the
BN hooks are registered for good, copy every input to take its variance and run in distillation too; `.item()` stalls every
step; generator and Adam are made anew for every batch; the student's images are PNG files, decoded and augmented one by
one; the head's features are computed with a graph that nobody uses. Written afresh for this benchmark.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.settings import LATENT_SIZE
from benchmarks.timing import Clock
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, random_views, rotations
from dfkd.distillation.csd import Aligner, RotationHead
from dfkd.methods import DDASettings
from dfkd.models.generators import Generator, reset_n02
from dfkd.synthesis.priors import random_labels, rotation_labels


def set_switches() -> None:
    """torch's own defaults, and cuDNN's deterministic kernels, which public code asks for whenever it gets a seed."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


class StatisticHook:
    """R_bn of one BN layer at every forward, for as long as the network lives."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.loss = torch.zeros(())
        layer.register_forward_hook(self._hook)

    def _hook(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        (x,) = inputs
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
        self.loss = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)  # type: ignore[operator]


class OriginalNetwork:
    """A teacher as public code keeps it: NCHW, weights that ask for gradients, BN hooks."""

    def __init__(self, teacher: nn.Module, device: torch.device) -> None:
        self.model = copy.deepcopy(teacher).to(device, memory_format=torch.contiguous_format).eval().requires_grad_(True)  # type: ignore[call-overload]
        self.hooks = [StatisticHook(layer) for layer in self.model.modules() if isinstance(layer, nn.BatchNorm2d)]

    def losses(self, views: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """R_bn and the one-hot term of a batch of normalised views."""
        logits = self.model(views)
        return {"bn": sum(hook.loss for hook in self.hooks), "oh": F.cross_entropy(logits, labels)}  # type: ignore[dict-item]


def invert(
    teacher: OriginalNetwork, info: DatasetInfo, batch: int, steps: int, device: torch.device, clock: Clock
) -> torch.Tensor:
    """One batch of the init bank; images [B,C,H,W] of the lowest loss. Crop and flip are the package's own."""
    clock.mark()
    generator = Generator(LATENT_SIZE, info.channels, info.image_size).to(device).train()
    reset_n02(generator)
    latent = torch.randn(batch, LATENT_SIZE, device=device).requires_grad_(True)
    groups: list[dict[str, Any]] = [{"params": generator.parameters()}, {"params": [latent]}]
    optimiser = torch.optim.Adam(groups, lr=1e-3, betas=(0.5, 0.999))
    labels = random_labels(batch, len(info.classes)).to(device)
    lowest, best = float("inf"), torch.empty(0)
    for _ in range(steps):
        images = generator(latent)
        losses = teacher.losses(normalise(random_views(images, info), info).contiguous(), labels)
        loss = losses["bn"] + losses["oh"]
        if loss.item() < lowest:
            lowest, best = loss.item(), images.detach().clone()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        clock.mark()
    return best


class PngFolder(Dataset[tuple[torch.Tensor, int]]):
    """<folder>/<label>/<number>.png through the training transform of the real data set, an image at a time."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.files = [(file, int(file.parent.name)) for file in sorted(folder.glob("*/*.png"))]
        self.transform = transforms.Compose([
            transforms.RandomCrop(info.image_size, padding=info.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(info.mean, info.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file, label = self.files[index]
        with Image.open(file) as image:
            return self.transform(image), label


def write_pngs(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """uint8 images [N,3,H,W] as a `PngFolder`."""
    for label in labels.unique().tolist():
        (folder / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True)):
        Image.fromarray(image).save(folder / str(label) / f"{number}.png")


class OriginalDistillation:
    """DDA's student and head steps on a folder of PNG files."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: DDASettings, device: torch.device
    ) -> None:
        self.teacher, self.info, self.settings, self.device = OriginalNetwork(teacher, device), info, settings, device
        self.student = copy.deepcopy(student).to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.head = RotationHead(student.feature_dim, len(info.classes)).to(device)  # type: ignore[arg-type]
        self.aligner = Aligner(student.feature_channels[-1], teacher.feature_channels[-1]).to(device)  # type: ignore[index, arg-type]
        rule: dict[str, Any] = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
        self.optimiser = torch.optim.SGD([*self.student.parameters(), *self.aligner.parameters()], lr=settings.lr, **rule)
        self.head_optimiser = torch.optim.SGD(self.head.parameters(), lr=settings.head_lr, **rule)

    def run(self, folder: Path, steps: int, workers: int, clock: Clock) -> None:
        """That many steps with a DataLoader that is made for them, as after every synthesis."""
        clock.mark()
        loader = DataLoader(
            PngFolder(folder, self.info), self.settings.batch_size, shuffle=True, num_workers=workers, drop_last=True,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        batches = iter(loader)
        for _ in range(steps):
            try:
                images, labels = next(batches)
            except StopIteration:
                batches = iter(loader)
                images, labels = next(batches)
            self.step(images.to(self.device), labels.to(self.device))
            clock.mark()

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted sum and the unweighted terms of the student's step."""
        settings = self.settings
        with torch.no_grad():
            teacher_logits, teacher_features = self.teacher.model(images, return_features=True)
        logits, features = self.student(images, return_features=True)
        target = teacher_features[-2]
        p = F.softmax(teacher_logits / settings.temperature, dim=1)
        q = F.log_softmax(logits / settings.temperature, dim=1)
        kd = F.kl_div(q, p, reduction="batchmean") * settings.temperature**2
        ce = F.cross_entropy(logits, labels)
        feature = F.mse_loss(self.aligner(features[-2], target.shape[2:]), target)
        return {
            "loss": settings.kd * kd + settings.ce * ce + settings.feature * feature,
            "kd": kd,
            "ce": ce,
            "feature": feature,
        }

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One student step, its running training figures, one head step."""
        self.student.train()
        losses = self.losses(images, labels)
        self.optimiser.zero_grad()
        losses["loss"].backward()
        self.optimiser.step()
        losses["loss"].item()
        losses["ce"].item()

        self.student.eval()
        features = self.student(rotations(images), return_features=True)[1][-1].detach()
        head = F.cross_entropy(self.head(features), rotation_labels(labels))
        self.head_optimiser.zero_grad()
        head.backward()
        self.head_optimiser.step()
