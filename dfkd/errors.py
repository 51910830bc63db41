"""Mistakes that a user can mend, told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence.

    The command line prints it without a traceback and ends with exit status 2. What libraries say in several lines, and is
    quoted in it, is joined to one.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(line.strip() for line in sentence.splitlines()))

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return UserError, (str(self),)  # what another process has to know of it


class ProcessLost(UserError):
    """One of the processes that share a stage is gone, and the others cannot go on."""

    def __init__(self) -> None:
        super().__init__("another process of this run has ended: see its message, then run the same command again to continue.")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that names the known names closest to `name`, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f"the nearest known: {', '.join(close)}"
    return f"known: {', '.join(names)}"
