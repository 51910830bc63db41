"""How far apart two sets of images lie in the teacher's feature space: FID and KID."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split, split_names
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.related import find_teacher
from dfkd.models.weights import load_model
from dfkd.progress import progress
from dfkd.runtime import Runtime, derive_seed

BATCH = 256
KID_SUBSETS, KID_LARGEST = 100, 1000  # torchmetrics' own defaults


class PenultimateFeatures(nn.Module):
    """uint8 images [N,C,H,W] → the features that the classifier's last layer sees, float64 [N,D]: a `feature=` of torchmetrics.

    `num_features` is D.
    """

    def __init__(self, model: nn.Module, info: DatasetInfo, runtime: Runtime) -> None:
        super().__init__()
        self.model, self.info, self.runtime = model, info, runtime
        self.num_features = self.forward(torch.zeros(1, *info.shape, dtype=torch.uint8)).shape[1]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """The pooled features of the teacher in evaluation mode."""
        unit = normalise(to_unit(images.to(self.runtime.device)), self.info)
        with self.runtime.autocast():
            _, maps = self.model(self.runtime.images(unit), return_features=True)
        return maps[-1].flatten(1).double().cpu()


def distances(bank: str | Path, against: str | Path, teacher: Path | None, runtime: Runtime) -> dict[str, Any]:
    """FID and KID (torchmetrics) between the images of a bank and others, in the teacher's penultimate features.

    These are not the figures of papers, which take Inception's features: they compare sets under one teacher alone. FID grows
    as sets get smaller; KID does not. KID is the mean over 100 pairs of subsets, drawn by a fixed seed, of half the
    smaller set, at most 1,000 images.

    Args:
        bank: whose teacher is taken unless one is named.
        against: another bank, or a prepared data set, of which the training split is read if it has one, else the test split.
        teacher: weights; None: those the bank was made with, looked for in the results around it.

    Returns:
        `against`, `split` (None for a bank), `images` (of both sets), `teacher`, `features` (D), `fid`, `kid`, `kid_std` (over
        the subsets), `kid_subset_size`.

    Raises:
        UserError: no teacher, images of another shape, fewer than four images on a side, or features that are not finite.
    """
    reader = BankReader(bank, allow_incomplete=True)
    weights = teacher or find_teacher(reader.path, reader.meta.teacher_sha256)
    if weights is None:
        raise UserError(f"{bank}: its teacher is not in the results around it; name it with --teacher.")
    model, card = load_model(weights, runtime)
    others, count, shape, split = _images_of(Path(against))
    for path, found in ((bank, reader.meta.dataset.shape), (against, shape)):
        if found != card.dataset.shape:
            raise UserError(f"{path}: its images are {found}, those of teacher {weights} {card.dataset.shape}; name what fits.")
    sizes = (len(reader), count)
    if min(sizes) < 4:
        raise UserError(f"{bank} and {against}: hold {sizes[0]} and {sizes[1]} images; FID and KID need four on each side.")
    features = PenultimateFeatures(model, card.dataset, runtime)
    subset = min(KID_LARGEST, min(sizes) // 2)
    measured = _measure(features, (block.images for block in reader.blocks()), others, sum(sizes), subset)
    return {
        "against": str(against),
        "split": split,
        "images": list(sizes),
        "teacher": card.architecture,
        "features": features.num_features,
        **measured,
        "kid_subset_size": subset,
    }


def _images_of(path: Path) -> tuple[Iterator[Tensor], int, tuple[int, int, int], str | None]:
    """Batches of uint8 images, their number and shape, and the split of a data set."""
    if path.suffix == ".lmdb" or not path.exists():
        reader = BankReader(path, allow_incomplete=True)
        return (block.images for block in reader.blocks()), len(reader), reader.meta.dataset.shape, None
    split = "train" if "train" in split_names(path) else "test"
    images, _ = read_split(path, split)
    return iter(images.split(BATCH)), len(images), read_info(path).shape, split


def _measure(
    features: PenultimateFeatures, ours: Iterator[Tensor], others: Iterator[Tensor], total: int, subset: int
) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.wrappers import FeatureShare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # KID keeps all features: N x D numbers, as said
        fid = FrechetInceptionDistance(features)
        kid = KernelInceptionDistance(features, subsets=KID_SUBSETS, subset_size=subset)
    both = FeatureShare([fid, kid])  # each image goes through the teacher once
    with progress("features", total) as steps:
        for images, real in ((ours, False), (others, True)):
            for batch in images:
                both.update(batch, real=real)
                steps.advance(len(batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("kid"))
        kid_mean, kid_std = kid.compute()
    result = {"fid": fid.compute().item(), "kid": kid_mean.item(), "kid_std": kid_std.item()}
    if not all(torch.isfinite(torch.tensor(list(result.values())))):
        raise UserError("the teacher's features are not finite; give a teacher that was trained.")
    return result
