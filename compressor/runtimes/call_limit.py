"""Limit of the time that one call of a model may take: a graph may loop without end.

No thread can interrupt a library that computes. So a measuring process reports the error and ends,
which it may do at any time (``CallLimit``). In the process of a command, ONNX Runtime is asked to
stop between two operators (``limited_call``); other libraries, and an operator that computes for
long, leave nothing but to end the command. What it has published stays, as after a kill.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import CallTimeoutError

_BASE_SECONDS = 600.0
_SECONDS_PER_MB = 0.2
_STOP_SECONDS = 30.0
"""Time that ONNX Runtime has to end the operator that it computes."""


def default_call_seconds(model: Path, batch_size: int) -> float:
    """Return a limit that no model comes near that ends: it grows with the model and the batch.

    A language model of 14 GB on a weak CPU takes most of an hour for one sample of 4,096 tokens.

    Args:
        model: the model's file or folder.
        batch_size: samples of one call.
    """
    return _BASE_SECONDS + _seconds_per_sample(model) * batch_size


def _seconds_per_sample(model: Path) -> float:
    files = [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]
    return _SECONDS_PER_MB * sum(path.stat().st_size for path in files) / 1e6


def _in_seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 1 else f"{seconds:g} s"


def call_timeout_error(model: Path, seconds: float) -> CallTimeoutError:
    """Return the error of a model whose call has not ended after a number of seconds."""
    return CallTimeoutError(
        f"{model}: one call of the model has not ended after {_in_seconds(seconds)}",
        remedy="look for a loop without end in the model; if it is that slow, lower `batch_size` "
        "or raise `evaluate.call_timeout`",
    )


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


@dataclass(frozen=True, slots=True)
class _Limit:
    model: Path
    seconds: float
    seconds_per_sample: float


_limit: ContextVar[_Limit | None] = ContextVar("call_limit", default=None)


@contextmanager
def limit_calls(model: Path, seconds: float | None = None) -> Iterator[None]:
    """Limit every ``limited_call`` in the ``with`` block.

    Args:
        model: the model's file or folder, which errors name unless a call names another.
        seconds: the limit; None for ``default_call_seconds``.
    """
    per_sample = _seconds_per_sample(model) if seconds is None else 0.0
    token = _limit.set(_Limit(model, seconds or _BASE_SECONDS, per_sample))
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def limited_call(
    feeds: Batch, *, stop: Callable[[], None] | None = None, model: Path | None = None
) -> Iterator[None]:
    """Limit one call of a model, inside of ``limit_calls``; elsewhere it may take any time.

    Args:
        feeds: the samples, along the first axes of the arrays.
        stop: has the call fail soon, from another thread; None if the library cannot, and the
            process ends with the error.
        model: the file or folder that the error names; default: that of ``limit_calls``.

    Raises:
        CallTimeoutError: the call was stopped.
    """
    limit = _limit.get()
    if limit is None:
        yield
        return
    samples = max((len(array) for array in feeds.values() if np.ndim(array)), default=1)
    seconds = limit.seconds + limit.seconds_per_sample * samples
    error = call_timeout_error(model or limit.model, seconds)
    ended, stopped = threading.Event(), threading.Event()

    def wait() -> None:
        if ended.wait(seconds):
            return
        if stop is not None:
            stopped.set()
            stop()
            if ended.wait(_STOP_SECONDS):
                return
        _end_process(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    except Exception as failure:
        if stopped.is_set():
            raise error from failure
        raise
    finally:
        ended.set()


def _end_process(error: CallTimeoutError) -> None:
    os.write(2, f"error: {error}\n".encode(errors="backslashreplace"))
    os._exit(error.exit_code)
