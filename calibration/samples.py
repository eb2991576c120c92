"""Calibration samples: a subset spread over a data set, and a digest of its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressor.data.contract import Batch, Dataset

Indices = np.ndarray[Any, np.dtype[np.int64]]


def spread_indices(length: int, count: int, seed: int = 0) -> Indices:
    """Return the indices of ``count`` samples of a data set of ``length``, in increasing order.

    The data set is divided into ``count`` equal stretches, since it may be sorted, and one sample
    is drawn at random from each, since it may also be periodic. All indices are returned if
    ``count`` is not less than ``length``.
    """
    if count >= length:
        return np.arange(length, dtype=np.int64)
    bounds = np.arange(count + 1, dtype=np.int64) * length // count
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])


class Samples:
    """A subset of a data set, iterated in batches any number of times.

    Args:
        dataset: the data set.
        count: the number of samples; all of the set if it has fewer.
        batch_size: samples per batch.
        seed: seed of the selection.
        progress: called as (activity, samples done, samples in total) after each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        count: int,
        batch_size: int,
        seed: int = 0,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self.dataset, self.batch_size, self.progress = dataset, batch_size, progress
        self.indices = spread_indices(len(dataset), count, seed)
        self.digest = ""
        """sha256 over every input array of the last complete iteration: name, dtype, shape and
        bytes. It depends on the batch size. Empty before the first iteration."""

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, count: int) -> Indices:
        """Return the indices of ``count`` of the samples, evenly spaced; all if there are fewer."""
        count = min(count, len(self))
        return self.indices[np.arange(count) * len(self) // max(count, 1)]

    def batches(self, activity: str) -> Iterator[Batch]:
        """Yield all samples in batches, report progress as ``activity``, and set ``digest``."""
        digest = hashlib.sha256()
        for start in range(0, len(self), self.batch_size):
            batch = self.dataset.batch(self.indices[start : start + self.batch_size])
            for name in self.dataset.input_names:
                array = batch[name]
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            yield batch
            self.progress(activity, min(start + self.batch_size, len(self)), len(self))
        self.digest = digest.hexdigest()
