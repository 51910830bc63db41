"""A stage that is asked to stop in the middle, without a process of its own."""

import contextlib

from dfkd.progress import StopRequest


class StopAfter(StopRequest):
    """Says that a signal has come from the n-th time on that it is asked."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __bool__(self):
        self.calls -= 1
        self.signal = 15 if self.calls < 0 else 0
        return self.signal != 0


def stop_after(monkeypatch, stage, calls):
    """Have the module `stage` be asked to stop."""
    monkeypatch.setattr(stage, "stop_request", lambda *_: contextlib.nullcontext(StopAfter(calls)))
