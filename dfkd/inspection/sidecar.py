"""The file beside a bank that keeps its teacher's scores: NAME.scores.h5. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dfkd.bank.storage import published_digest
from dfkd.errors import UserError
from dfkd.hdf5 import atomic_hdf5

FORMAT = "dfkd bank scores 1"
CHUNK_ROWS = 4096
TOP = 5  # answers that are kept of each image

# Columns that are measured, one number an image; a bank's own scores keep their names beside them.
MEASURED = {
    "prediction": "the class that the teacher chooses",
    "confidence": "the teacher's largest probability",
    "label_probability": "the teacher's probability of the label",
    "entropy": "of the teacher's probabilities, nats",
    "bn_distance": "R_bn of the image alone: distance of its BN statistics to the teacher's, summed over layers",
    "brightness": "mean of the pixels, 0 to 255",
    "contrast": "standard deviation of the pixels, 0 to 255",
    "constant": "1 if all pixels have one value",
    "duplicate_of": "index of the first image with the same pixels; -1: none before it",
}


@dataclass(frozen=True)
class BankScores:
    """Row i is image i of the bank.

    Attributes:
        columns: [N] each: `label`, `parent` (-1: none), the bank's own scores, and those of `MEASURED`
            (`bn_distance` only of a teacher with BatchNorm layers).
        features: float16 [N,D], the teacher's penultimate features.
        top_classes: int16 [N,k], the classes that the teacher finds likeliest, the likeliest first; k = min(5, classes).
        top_probabilities: float32 [N,k], their probabilities.
        class_bn_distance: float64 [K], R_bn of all images of a class as one batch; NaN without images or BatchNorm.
        all_bn_distance: R_bn of the whole bank as one batch; NaN likewise.
        teacher: architecture of the teacher.
        teacher_sha256: of its weights.
        digest: of the bank's file; None for one that was being written.
    """

    columns: dict[str, np.ndarray]
    features: np.ndarray
    top_classes: np.ndarray
    top_probabilities: np.ndarray
    class_bn_distance: np.ndarray
    all_bn_distance: float
    teacher: str
    teacher_sha256: str
    digest: str | None

    def __len__(self) -> int:
        return len(self.features)


def scores_file(bank: str | Path) -> Path:
    """Where the scores of a bank are kept: `init.scores.h5` beside `init.lmdb`."""
    return Path(bank).with_suffix(".scores.h5")


def kept_scores(bank: str | Path, teacher_sha256: str) -> BankScores | None:
    """The scores beside a bank if they are of this very bank and teacher; None if there are none such.

    Raises:
        UserError: there is a file, and it is damaged or of another version.
    """
    path = scores_file(bank)
    if not path.exists():
        return None
    kept = read_scores(path)
    fits = kept.digest is not None and kept.digest == published_digest(bank) and kept.teacher_sha256 == teacher_sha256
    return kept if fits else None


def write_scores(path: str | Path, scores: BankScores) -> None:
    """Keep scores as HDF5. Equal scores give equal bytes.

    Raises:
        ValueError: they are of a bank that was being written.
    """
    if scores.digest is None:
        raise ValueError("scores of a growing bank are out of date as soon as they are written")
    with atomic_hdf5(path) as file:
        file.attrs.update({"format": FORMAT, "bank_digest": scores.digest, "teacher": scores.teacher})
        file.attrs.update({"teacher_sha256": scores.teacher_sha256, "all_bn_distance": scores.all_bn_distance})
        file.attrs["columns"] = json.dumps(list(scores.columns))
        arrays: dict[str, Any] = {f"columns/{name}": values for name, values in scores.columns.items()}
        for name in ("features", "top_classes", "top_probabilities", "class_bn_distance"):
            arrays[name] = getattr(scores, name)
        for name, values in arrays.items():
            chunks = (min(CHUNK_ROWS, len(values)), *values.shape[1:]) if values.size else None
            file.create_dataset(name, data=values, chunks=chunks, track_times=False)


def read_scores(path: str | Path) -> BankScores:
    """Read what `write_scores` wrote. A file that is none is a `UserError`."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise UserError(f"{path}: not scores of this version; make them again with `dfkd bank score`.")
            columns = {name: file[f"columns/{name}"][()] for name in json.loads(file.attrs["columns"])}
            return BankScores(
                columns,
                file["features"][()],
                file["top_classes"][()],
                file["top_probabilities"][()],
                file["class_bn_distance"][()],
                float(file.attrs["all_bn_distance"]),
                str(file.attrs["teacher"]),
                str(file.attrs["teacher_sha256"]),
                str(file.attrs["bank_digest"]),
            )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `dfkd bank score`.") from None
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a whole scores file ({error}); make it again with `dfkd bank score`.") from None
