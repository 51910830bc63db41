"""Published figures of the field, with their sources. Imports no torch."""

from __future__ import annotations

import csv
import functools
from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class PublishedFigure(BaseModel):
    """One figure of published.csv, names as the source prints them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    teacher: str
    student: str
    method: str
    # acc1, agree1: percent; L_p, acc1_fraction, acc1_fraction_std, miou: 0 to 1; synthesis_hours, train_hours, speedup_x, flops
    metric: str
    value: float | str  # a string where the source prints no plain number, e.g. `433K` or `FAILED`
    source: str
    reference: str  # where to find and how to cite it
    note: str  # caveat; empty for most


@functools.cache
def load() -> tuple[PublishedFigure, ...]:
    """Every row of published.csv, in its order."""
    text = (files("dfkd.evaluation") / "published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(PublishedFigure.model_validate({**row, "value": _number(row["value"])}) for row in rows)


def matching(dataset: str, teacher: str, student: str) -> list[PublishedFigure]:
    """The figures for a data set and a pair, however their sources spell the names (`wrn40_2` is `wrn402`)."""
    wanted = normalised(dataset), normalised(teacher), normalised(student)
    return [row for row in load() if (normalised(row.dataset), normalised(row.teacher), normalised(row.student)) == wanted]


def from_scratch(dataset: str, student: str) -> list[PublishedFigure]:
    """The figures of a student trained on the real data, which some sources print for each teacher beside it."""
    wanted = normalised(dataset), normalised(student)
    rows = [row for row in load() if row.method == "student_scratch"]
    return [row for row in rows if (normalised(row.dataset), normalised(row.student)) == wanted]


def normalised(name: str) -> str:
    """`name` as this package spells it: lower case, no separators, `resnet34_8x` (DFAD's CIFAR form) as `resnet34`."""
    plain = name.lower().removesuffix("_8x")
    return plain.replace("_", "").replace("-", "")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
