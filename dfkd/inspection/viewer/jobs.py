"""What takes longer than a page: one thing after the other in a thread of its own, with its progress."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

from dfkd.errors import UserError
from dfkd.progress import Steps

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """The server ends."""


@dataclass
class Job:
    """A piece of work; `result` is there when `state` is done."""

    title: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    done: int = 0
    total: int = 0
    note: str = ""
    result: Any = None
    error: str = ""

    def described(self) -> dict[str, Any]:
        """For a page that waits, JSON-ready."""
        known = ("title", "state", "done", "total", "note", "error")
        return {name: getattr(self, name) for name in known}


class JobSteps(Steps):
    """Steps that are counted in a job, and end the work when the server ends."""

    def __init__(self, job: Job, total: int, stop: threading.Event) -> None:
        super().__init__(job.title, total, 0, None)
        self.job, self.stop = job, stop
        job.total = total

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished steps."""
        self.done += count
        self.job.done, self.job.note = self.done, note or self.job.note
        if self.stop.is_set():
            raise Cancelled


Work = Callable[[Job, threading.Event], Any]


class Jobs:
    """Jobs by key. The thread starts with the first one; it does not keep the process alive."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, Job] = {}
        self._queue: queue.Queue[tuple[Job, Work]] = queue.Queue()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self, key: Hashable) -> Job | None:
        """The job of this key, if one was begun."""
        return self._jobs.get(key)

    def begin(self, key: Hashable, title: str, work: Work) -> Job:
        """The job of this key, begun if there is none or it failed."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state != "failed":
                return job
            job = self._jobs[key] = Job(title)
            self._queue.put((job, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="viewer jobs", daemon=True)
                self._thread.start()
            return job

    def end(self, seconds: float = 5.0) -> None:
        """Stop after the step in hand."""
        self._stop.set()
        if self._thread is not None:
            self._queue.put((Job(""), lambda job, stop: None))
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            job, work = self._queue.get()
            job.state = "running"
            try:
                job.result = work(job, self._stop)
                job.state = "done"
            except Cancelled:
                return
            except UserError as error:
                job.error, job.state = str(error), "failed"
            except Exception as error:  # the thread has to live on, and the page to hear of it
                logger.exception("%s", job.title)
                job.error, job.state = f"{job.title} failed: {error}.", "failed"
