"""What a stage says while it runs, and how it is asked to stop: bars or log lines, signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal asked to stop; what can be saved is saved. `status` is 128 + the signal's number.

    No `Exception`: it may be raised anywhere, and nothing that deals with errors is to take it for one.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"stopped by signal {status - 128}; run the same command again to continue")
        self.status = status

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return Stopped, (self.status,)


class StopRequest:
    """Notes SIGTERM and SIGINT so that a loop can save its state between two steps.

    With `agree`, which gives the largest number that any process of a run has noted, all of them stop at the same place; each
    has to ask as often as the others.
    """

    def __init__(self, agree: Callable[[int], int] | None = None, alone: bool = True) -> None:
        self.signal = self._agreed = 0
        self._agree, self._alone = agree, alone and agree is None
        self._at_once = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if self._at_once:
            self.stop()

    def __bool__(self) -> bool:
        if self._agree is None:
            return self.signal != 0
        self._agreed = self._agreed or self._agree(self.signal)
        return self._agreed != 0

    def stop(self) -> None:
        """Leave the stage. Call it after the state is saved."""
        raise Stopped(128 + (self._agreed or self.signal))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal leaves at once by `Stopped`, as one does that came before.

        For what takes longer than a step and changes nothing that is saved: a pass over a test split, a block of variations,
        images that are waited for. Of several processes none leaves the others waiting: there the block is done first.
        """
        if not self._alone:
            yield
            return
        if self:
            self.stop()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def stop_request(agree: Callable[[int], int] | None = None, alone: bool = True) -> Iterator[StopRequest]:
    """Within the block, SIGTERM and SIGINT only set the request, which `agree` shares with other processes.

    Without `agree` a process that is not `alone` is asked on its own, and tells the others itself.
    """
    request = StopRequest(agree, alone)
    try:
        former = {number: signal.signal(number, request._note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: signals go elsewhere
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_on_signals() -> None:
    """From here on SIGTERM and SIGINT raise `Stopped` wherever the program is, so that partial files go and it says its line.

    A signal that the caller has this program ignore stays ignored. Loops that have a state to save take over by `stop_request`.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


class Steps:
    """Progress of a loop: a bar with steps/s and time left on a terminal, a plain line every 30 s in a log."""

    def __init__(self, description: str, total: int, start: int, bar: Progress | None) -> None:
        self.description, self.total, self.done, self._start = description, total, start, start
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=start, rate="", note="") if bar else None
        self._begin = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished steps; `note` is a short text such as the last epoch's figures."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._start) / max(now - self._begin, 1e-9)
        if self._bar is not None and self._task is not None:
            fields = {"rate": f"{rate:.1f}/s"} | ({"note": note} if note else {})
            self._bar.update(self._task, completed=self.done, **fields)  # type: ignore[arg-type]
        elif now - self._last > 30 or note or self.done == self.total:
            left = (self.total - self.done) / max(rate, 1e-9)
            logger.info("%s %d/%d  %.1f steps/s  %.0f s left  %s", self.description, self.done, self.total, rate, left, note)
            self._last = now


@contextlib.contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Steps]:
    """Show the progress of a loop of `total` steps, of which `start` were done in an earlier attempt."""
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        yield Steps(description, total, start, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Steps(description, total, start, bar)


def setup_logging(verbose: bool = False) -> None:
    """Colours on a terminal, plain dated lines in a log file."""
    level = logging.DEBUG if verbose else logging.INFO
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False)
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    for name in ("httpx", "urllib3", "matplotlib", "PIL", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
