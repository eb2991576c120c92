"""Limit of the time that one call of a model may take: a graph may loop without end.

No thread can interrupt a library that computes. So the process reports the error and ends, which a
measuring process may do at any time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BASE_SECONDS = 600.0
_SECONDS_PER_MB = 0.2


def default_call_seconds(model: Path, batch_size: int) -> float:
    """Return a limit that no model comes near that ends: it grows with the model and the batch.

    A language model of 14 GB on a weak CPU takes most of an hour for one sample of 4,096 tokens.

    Args:
        model: the model's file or folder.
        batch_size: samples of one call.
    """
    files = [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return _BASE_SECONDS + _SECONDS_PER_MB * megabytes * batch_size


class CallLimit:
    """Watches the calls of a model from a thread.

    Args:
        expired: called with the limit in seconds, in that thread, when a call has exceeded it.
    """

    def __init__(self, expired: Callable[[float], None]) -> None:
        self._expired = expired
        self._seconds = math.inf
        self._deadline = math.inf

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Limit the calls in the ``with`` block; ``next_call`` marks the start of each."""
        self._seconds, ended = seconds, threading.Event()
        self.next_call()
        thread = threading.Thread(target=self._wait, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._seconds = self._deadline = math.inf

    def next_call(self) -> None:
        """Give the next call the full time; does nothing outside ``watch``."""
        self._deadline = time.monotonic() + self._seconds

    def no_more_calls(self) -> None:
        """Set no limit for the rest of the block, which computes metrics."""
        self._deadline = math.inf

    def _wait(self, ended: threading.Event) -> None:
        while not ended.wait(min(max(self._deadline - time.monotonic(), 0.05), 60.0)):
            if time.monotonic() > self._deadline:
                self._expired(self._seconds)
                return
