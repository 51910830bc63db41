"""One line of what the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "better", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and for a lack what to do about it."""

    section: str
    name: str
    mark: Mark  # ok; could be better; missing
    says: str
    remedy: str = ""  # empty for what is ok
    needed: bool = False  # no run gets by without it


def size(count: float) -> str:
    """Bytes for people, in GiB."""
    return f"{count / 2**30:,.0f} GiB" if count >= 10 * 2**30 else f"{count / 2**30:.1f} GiB"
