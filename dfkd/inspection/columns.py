"""The columns that a condition or an order asks for: those of the bank where they do, else what the teacher says."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np

from dfkd.bank.reader import BankReader
from dfkd.errors import UserError, nearest
from dfkd.inspection.related import find_teacher
from dfkd.inspection.scores import MEASURED, scores_file, scores_of
from dfkd.inspection.where import names_in, select
from dfkd.runtime import Runtime

logger = logging.getLogger(__name__)


def columns_of(reader: BankReader, names: Collection[str], teacher: Path | None, runtime: Runtime) -> dict[str, np.ndarray]:
    """`label`, `parent`, the bank's own scores and, if one of `names` is in `MEASURED`, what the teacher says; [N] each.

    A measured column takes the place of an own score of its name, as on pages and in the viewer. Where no teacher is to be
    had, the bank's own scores have to do.

    Raises:
        UserError: a name is no column, or it has to be measured and there is no teacher.
    """
    stored = reader.columns()
    own = {"label": stored.labels, "parent": stored.parents, **stored.scores}
    columns = {name: values.numpy() for name, values in own.items()}
    unknown = sorted(name for name in names if name not in {"index", *columns, *MEASURED})
    if unknown:
        raise UserError(f"{reader.path}: no column '{unknown[0]}'; {nearest(unknown[0], {'index', *columns, *MEASURED})}.")
    asked = set(names) & set(MEASURED)
    if not asked:
        return columns
    nobody = teacher is None and not scores_file(reader.path).exists()
    if nobody and asked <= set(columns) and find_teacher(reader.path, reader.meta.teacher_sha256) is None:
        logger.info("%s: its teacher was not found; %s as the bank's stage wrote it", reader.path, ", ".join(sorted(asked)))
        return columns
    measured = scores_of(reader.path, teacher, runtime).columns
    return {name: values[: len(reader)] for name, values in measured.items()}  # a growing bank may hold more by now


def ranking(reader: BankReader, order: str, score: str | None, teacher: Path | None, runtime: Runtime) -> np.ndarray:
    """Indices of all images, int64 [N]: as they lie (`first`), by falling (`best`) or rising (`worst`) values of a column."""
    if order == "first":
        return np.arange(len(reader))
    if not score:
        raise UserError(f"--order {order}: name the score that it goes by with --score.")
    values = columns_of(reader, {score}, teacher, runtime).get(score, np.arange(len(reader)))
    return np.argsort(values if order == "worst" else -values.astype(float), kind="stable")


def chosen(reader: BankReader, condition: str, teacher: Path | None, runtime: Runtime) -> np.ndarray:
    """The images of a bank for which a condition holds (`dfkd.inspection.where.select`), as bool [N]."""
    classes = reader.meta.dataset.classes
    names = names_in(condition, classes) - set(classes)
    return select(condition, columns_of(reader, names, teacher, runtime), classes)
