"""Logits of networks on the test split, and the HDF5 file that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.hdf5 import atomic_hdf5
from dfkd.progress import Steps
from dfkd.runtime import Runtime

FORMAT = "dfkd predictions 1"
CHUNK_ROWS = 1024


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    info: DatasetInfo,
    runtime: Runtime,
    batch_size: int = 500,
    steps: Steps | None = None,
) -> Tensor:
    """Logits [N,K], float32 on the CPU, of uint8 images [N,C,H,W] in the view of evaluation: normalised, nothing else.

    The network works in eval mode and is left in the mode it was in. It is not compiled: a pass over a test split is
    shorter than a compilation. `steps` is advanced once a batch. Of several processes each takes some of the batches, and all
    have to come here.

    Raises:
        UserError: a logit is not finite, so that no metric would mean anything.
    """
    training = model.training
    model.eval()
    parts, ranks = [], runtime.ranks
    batches = images.split(batch_size)
    # processes have whole batches each, so that the rounding is that of one process
    first, last = (len(batches) * number // ranks.world for number in (ranks.rank, ranks.rank + 1))
    for batch in batches[first:last]:
        unit = normalise(to_unit(batch.to(runtime.device)), info)
        with runtime.autocast():
            logits = model(runtime.images(unit))
        parts.append(logits.float())
        if steps is not None:
            steps.advance()
    model.train(training)
    own = torch.cat(parts) if parts else torch.zeros(0, len(info.classes), device=runtime.device)
    gathered = ranks.whole(own, len(images), slice(first * batch_size, last * batch_size)).cpu()
    if not gathered.isfinite().all():
        raise UserError(
            f"{type(model).__name__}: NaN or infinite logits on the images of {info.name}: the training diverged; "
            "train it again with a lower lr."
        )
    return gathered


def write_predictions(path: str | Path, logits: Mapping[str, Tensor], labels: Tensor, attributes: Mapping[str, str]) -> None:
    """Write `{name}_logits` float32 [N,K] for each network and `labels` int64 [N]. Equal content gives equal bytes."""
    arrays = {f"{name}_logits": values.float().numpy() for name, values in logits.items()}
    arrays["labels"] = labels.to(torch.int64).numpy()
    with atomic_hdf5(path) as file:
        file.attrs["format"] = FORMAT
        for key, value in sorted(attributes.items()):
            file.attrs[key] = value
        for key, values in arrays.items():
            chunks = (min(CHUNK_ROWS, len(values)), *values.shape[1:])
            file.create_dataset(key, data=np.ascontiguousarray(values), chunks=chunks, track_times=False)


@dataclass(frozen=True)
class Predictions:
    """What a predictions file holds."""

    logits: dict[str, Tensor]  # `teacher`, `student` and, if kept, `best`: float32 [N,K]
    labels: Tensor  # int64 [N]
    attributes: dict[str, str]  # names of the networks, classes, SHA-256s


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote. A file that is none is a `UserError`."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise UserError(f"{path}: not a predictions file of this version; make it with `dfkd evaluate`.")
            logits = {key.removesuffix("_logits"): torch.from_numpy(file[key][()]) for key in file if key.endswith("_logits")}
            attributes = {key: str(value) for key, value in file.attrs.items() if key != "format"}
            return Predictions(logits, torch.from_numpy(file["labels"][()]), attributes)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error}); make it again with `dfkd evaluate`.") from None
