"""A model without text generation, behind a queue that forms batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import CompressError, DataError, UsageError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import match_inputs
from compressor.serving.batch_queue import BatchQueue, Result, Work

Array = np.ndarray[Any, Any]


class Prediction:
    """The parts of one request in the queue."""

    def __init__(self, queue: BatchQueue, feeds: Sequence[Batch]) -> None:
        """Queue the parts.

        Raises:
            QueueFullError: too many requests wait.
        """
        loop = asyncio.get_running_loop()
        self._futures: list[asyncio.Future[Batch]] = [loop.create_future() for _ in feeds]
        self._parts = [
            Work(part, _samples(part), partial(_deliver, loop, future), _shape_key(part))
            for part, future in zip(feeds, self._futures, strict=True)
        ]
        queue.submit(self._parts)

    async def each(self) -> list[Batch]:
        """Return the outputs of each part; a caller that is cancelled cancels the parts.

        Raises:
            CompressError: the model failed.
        """
        try:
            return [await future for future in self._futures]
        finally:
            for work in self._parts:
                work.is_cancelled = True

    async def joined(self) -> Batch:
        """Return the outputs of all samples; see ``each``."""
        outputs = await self.each()
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


class Predictor:
    """Predicts for many requests at once.

    Attributes:
        inputs: the model's inputs.
        outputs: names of the model's outputs.
        folder: the model's folder.
        queue: the queue of the requests.
        runtime: name and version of the runtime.
        max_batch: the largest number of samples of a batch.
        max_wait_seconds: the longest time that a request may wait.
        stand_in_reason: why another model runs in place of this one; None if it runs itself.
    """

    def __init__(
        self, model: StoredModel, *, workers: int, max_batch: int, max_wait_seconds: float
    ) -> None:
        """Open the model once for each worker, with one thread each.

        Args:
            model: a model of any format that a runtime executes.
            workers: number of batches that are computed at once.
            max_batch: the largest number of samples of a batch.
            max_wait_seconds: the longest time that a request may wait.

        Raises:
            CompressError: the model cannot be opened.
        """
        model, self.stand_in_reason = model.runnable()
        self.folder: Path = model.path
        sessions = [model.open_session(1) for _ in range(workers)]
        self._sessions = sessions
        self.runtime = sessions[0].runtime
        self.inputs: tuple[InputSpec, ...] = sessions[0].inputs
        self.outputs: tuple[str, ...] = sessions[0].output_names
        if not self.inputs:
            raise UsageError(f"{model.path} has no inputs that could be predicted from")
        batchable = all(spec.shape and isinstance(spec.shape[0], str) for spec in self.inputs)
        self.max_batch = max_batch if batchable else 1
        self.max_wait_seconds = max_wait_seconds
        self.queue = BatchQueue(
            [session.compute for session in sessions],
            max_batch=self.max_batch,
            max_wait_seconds=max_wait_seconds,
        )

    def submit(self, arrays: Mapping[str, Array]) -> Prediction:
        """Queue arrays [B, …] of the model's inputs; to be called on the event loop.

        Raises:
            DataError: arrays are missing or do not fit.
            QueueFullError: too many requests wait.
        """
        feeds = match_inputs(arrays, self.inputs)
        samples = _samples(feeds)
        if not samples:
            raise DataError("the data does not fit the model's inputs: it has no sample")
        return Prediction(self.queue, _parts(feeds, samples, self.max_batch))

    def submit_each(self, samples: Sequence[Mapping[str, Array]]) -> Prediction:
        """Queue samples of different shapes, which wait as one request.

        Args:
            samples: arrays [1, …] of the model's inputs for each sample.

        Raises:
            CompressError: as ``submit``.
        """
        feeds = [match_inputs(arrays, self.inputs) for arrays in samples]
        return Prediction(self.queue, feeds)

    def close(self) -> None:
        """Finish what waits, and release the model."""
        self.queue.close()
        for session in self._sessions:
            session.close()


def _parts(feeds: Batch, samples: int, size: int) -> list[Batch]:
    """Return the feeds in parts of a batch each, where all of them have a row for each sample."""
    rows = {array.shape[:1] for array in feeds.values()}
    if samples <= size or rows != {(samples,)}:
        return [feeds]
    return [
        {name: array[first : first + size] for name, array in feeds.items()}
        for first in range(0, samples, size)
    ]


def _deliver(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Batch], result: Result
) -> None:
    """Hand a result from a worker's thread to the event loop."""
    with suppress(RuntimeError):  # the loop has ended: the server was stopped
        loop.call_soon_threadsafe(_resolve, future, result)


def _resolve(future: asyncio.Future[Batch], result: Result) -> None:
    if future.done():
        return
    if isinstance(result, CompressError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _samples(feeds: Batch) -> int:
    """Return the number of samples: the size of the first axis."""
    return next((len(array) for array in feeds.values() if array.ndim), 1)


def _shape_key(feeds: Batch) -> tuple[Any, ...]:
    return tuple((name, array.dtype.char, array.shape[1:]) for name, array in feeds.items())
