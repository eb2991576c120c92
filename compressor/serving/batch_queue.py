"""A queue of predictions that forms batches, bounded by the time that one waits in it.

Shapes: B samples.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import CompressError
from compressor.serving.api_errors import ApiError, overloaded, unavailable

Array = np.ndarray[Any, Any]
Result = Batch | CompressError
Deliver = Callable[[Result], None]
ItemT = TypeVar("ItemT")
_SMOOTHING = 0.1
"""Weight of the newest batch in the mean time of a sample."""


class QueueFullError(CompressError):
    """A prediction would wait longer than the bound.

    Attributes:
        retry_after_seconds: time until the queue is empty.
        closing: True if the queue accepts nothing more.
    """

    def __init__(self, what: str, retry_after_seconds: float, *, closing: bool = False) -> None:
        super().__init__(what, remedy="send fewer requests at once, or try again later")
        self.retry_after_seconds, self.closing = retry_after_seconds, closing


def queue_full(error: QueueFullError) -> ApiError:
    """Return the error for a client: 503 while the server stops, else 429."""
    if error.closing:
        return unavailable(error.what, error.retry_after_seconds, "draining")
    return overloaded(error.what, error.retry_after_seconds)


@dataclass(slots=True)
class Work:
    """Samples of one request that fit into a batch, checked against the model's inputs."""

    feeds: Batch
    samples: int
    deliver: Deliver
    """Called once, on a worker's thread, with the outputs or the error."""
    shape_key: tuple[Any, ...]
    """Equal for samples that fit into one batch."""
    arrived: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False


class BatchQueue:
    """Runs predictions in batches, on one thread for each compute function.

    A worker takes whatever waits, up to ``max_batch`` samples: nothing is delayed to fill a batch,
    and under load batches form by themselves. A request is refused where the samples in front of it
    would take longer than ``max_wait_seconds``, by the measured time of a sample.
    """

    def __init__(
        self,
        computes: Sequence[Callable[[Batch], Batch]],
        *,
        max_batch: int,
        max_wait_seconds: float,
    ) -> None:
        """Start the workers.

        Args:
            computes: one function for each worker, from feeds [B, …] to outputs [B, …].
            max_batch: the largest number of samples of a batch; 1 where the model takes no more.
            max_wait_seconds: the longest time that a request may wait.
        """
        self._max_batch, self._max_wait = max_batch, max_wait_seconds
        self._waiting: deque[Work] = deque()
        self._waiting_samples = self._running_samples = 0
        self._seconds_per_sample = 0.0
        self._changed = threading.Condition()
        self._is_closed = False
        self.active_workers = len(computes)
        self.batches = self.predictions = 0
        self._threads = [
            threading.Thread(target=self._work, args=(number, compute), daemon=True)
            for number, compute in enumerate(computes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_samples(self) -> int:
        """Number of samples that wait."""
        return self._waiting_samples

    @property
    def running_samples(self) -> int:
        """Number of samples that are being computed."""
        return self._running_samples

    def submit(self, parts: Sequence[Work]) -> None:
        """Append the parts of a request.

        Raises:
            QueueFullError: they would wait too long, or the queue is closed.
        """
        with self._changed:
            if self._is_closed:
                raise QueueFullError("the server is stopping", 1, closing=True)
            wait = self._waiting_samples * self._seconds_per_sample / self.active_workers
            if wait > self._max_wait:
                raise QueueFullError(
                    f"{self._waiting_samples} predictions wait, which is {wait * 1000:.0f} ms at "
                    f"the present rate; the bound is {self._max_wait * 1000:.0f} ms",
                    wait,
                )
            self._waiting.extend(parts)
            self._waiting_samples += sum(work.samples for work in parts)
            self._wake(len(parts))

    def limit(self, workers: int) -> None:
        """Let at most as many workers run; at least one does."""
        with self._changed:
            self.active_workers = max(1, min(workers, len(self._threads)))
            self._changed.notify_all()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Finish what waits, and end the workers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_seconds)

    def _work(self, number: int, compute: Callable[[Batch], Batch]) -> None:
        while batch := self._take(number):
            started = time.monotonic()
            _run(batch, compute)
            samples = sum(work.samples for work in batch)
            self._finish(samples, time.monotonic() - started)

    def _take(self, number: int) -> list[Work]:
        """Wait for work, and return a batch; nothing once the queue is closed and empty."""
        with self._changed:
            while True:
                may_run = number < self.active_workers or self._is_closed
                if self._waiting and may_run:
                    if batch := self._next_batch():
                        return batch
                    continue
                if self._is_closed:
                    return []
                self._changed.wait()

    def _next_batch(self) -> list[Work]:
        """Return the oldest request, and those behind it that fit into its batch."""
        batch: list[Work] = []
        skipped: list[Work] = []
        samples = 0
        while self._waiting and len(skipped) < self._max_batch:
            work = self._waiting.popleft()
            if work.is_cancelled:
                self._waiting_samples -= work.samples
            elif not batch or (
                work.shape_key == batch[0].shape_key and samples + work.samples <= self._max_batch
            ):
                batch.append(work)
                samples += work.samples
                if samples >= self._max_batch:
                    break
            else:
                skipped.append(work)
        self._waiting.extendleft(reversed(skipped))
        self._waiting_samples -= samples
        self._running_samples += samples
        if self._waiting:
            self._wake(1)
        return batch

    def _wake(self, count: int) -> None:
        """Wake as many workers; all where some may not run, since these would swallow the call."""
        is_limited = self.active_workers < len(self._threads)
        self._changed.notify(len(self._threads) if is_limited else count)

    def _finish(self, samples: int, seconds: float) -> None:
        with self._changed:
            self._running_samples -= samples
            each = seconds / samples
            before = self._seconds_per_sample
            self._seconds_per_sample = each if not before else before + _SMOOTHING * (each - before)
            self.batches += 1
            self.predictions += samples


def _run(batch: Sequence[Work], compute: Callable[[Batch], Batch]) -> None:
    """Compute a batch and deliver the outputs of each request, or the error to all of them."""
    try:
        feeds = _joined(batch)
        results: Sequence[Result] = _split(compute(feeds), [work.samples for work in batch])
    except CompressError as error:
        results = [error] * len(batch)
    except Exception as error:  # noqa: BLE001 - a worker lives on; its requests get the error
        from compressor.artifacts.causes import describe_unexpected

        results = [describe_unexpected(error)] * len(batch)
    for work, result in zip(batch, results, strict=True):
        work.deliver(result)


def _joined(batch: Sequence[Work]) -> Batch:
    if len(batch) == 1:
        return batch[0].feeds
    return {name: np.concatenate([work.feeds[name] for work in batch]) for name in batch[0].feeds}


def _split(outputs: Batch, counts: Sequence[int]) -> list[Batch]:
    """Return the outputs of each request.

    Raises:
        CompressError: an output has another number of rows than the batch has samples.
    """
    if len(counts) == 1:
        return [outputs]
    total = sum(counts)
    wrong = [name for name, array in outputs.items() if array.shape[:1] != (total,)]
    if wrong:
        raise CompressError(
            f"the output {wrong[0]!r} has no row for each sample, so requests cannot share a batch",
            remedy="start the server with --batch 1",
        )
    ends = np.cumsum([0, *counts]).tolist()
    return [
        {name: array[first:last] for name, array in outputs.items()}
        for first, last in pairwise(ends)
    ]
