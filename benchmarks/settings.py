"""What is measured: networks, batch sizes, repeats. And the networks themselves, with weights that need no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.models import build_model

# CIFAR-10's shape and normalisation; no image of it is used.
INFO = DatasetInfo(
    name="benchmark",
    classes=[f"class {number}" for number in range(10)],
    image_size=32,
    channels=3,
    mean=[0.4914, 0.4822, 0.4465],
    std=[0.2470, 0.2435, 0.2616],
    crop_padding=4,
    flip=True,
)
LATENT_SIZE = 256


@dataclass(frozen=True)
class Options:
    """The size of a benchmark run. The defaults are the full one."""

    teacher: str = "wrn402"
    student: str = "wrn161"
    batch: int = 200  # images of a synthesis step
    student_batch: int = 128  # images of a student step
    method_batch: int | None = None  # images of the methods' steps; None: what each has published
    objective_batch: int = 64  # images of the steps of objectives with data
    transfer_images: int = 50_000  # that these distil on
    steps: int = 2  # timed steps of a variant before the next one has its turn
    rounds: int = 3  # turns of each variant
    compile: bool = True  # also measure with torch.compile
    device: str = "auto"
    workers: int = 0  # of the DataLoader of the original habits
    store: int = 2000  # images that the student's batches are drawn from
    small_bank: int = 10_000  # images
    large_bank: int = 100_000
    loads: int = 5  # repeats of loading a bank
    files: int = 2000  # loose image files
    plan_jobs: int = 10_000  # of the campaign that is planned, at least
    bank_sizes: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)  # images, of the part `scaling`
    sampled_batches: int = 1000  # that are drawn of each
    shard_teacher: str = "wrn162"
    shard_batches: int = 4  # of the init bank that is made as 1 and as 2 shards
    shard_images: int = 32  # of a batch
    shard_steps: int = 8  # of a batch
    shard_rounds: int = 2  # turns
    turns: int = 20  # pages that are turned in the viewer
    peak_size: int = 2048  # of the square matrices
    peak_seconds: float = 0.5  # of a window of products, at least
    peak_windows: int = 5


QUICK = {
    "batch": 32, "student_batch": 32, "method_batch": 32, "objective_batch": 16, "transfer_images": 20_000,
    "steps": 1, "rounds": 2, "compile": False, "store": 500,
    "small_bank": 1000, "large_bank": 10_000, "loads": 3, "files": 200, "plan_jobs": 500, "turns": 5, "peak_windows": 3,
    "bank_sizes": (1000, 10_000), "sampled_batches": 100, "shard_batches": 2, "shard_steps": 2, "shard_rounds": 1,
}  # fmt: skip


@torch.no_grad()
def network(name: str, seed: int, blocks: str = "plain") -> nn.Module:
    """A network in eval mode whose BN statistics are those of noise: its activations are of the usual size at every layer."""
    torch.manual_seed(seed)
    model = build_model(name, len(INFO.classes), INFO.channels, INFO.image_size, blocks).train()
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    model(torch.randn(16, *INFO.shape))
    for layer in layers:
        layer.momentum = 0.1
    return model.eval()
