"""Which samples of a set calibration looks at, and the digest of what it saw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressor.data.contract import Batch, Dataset


def chosen(length: int, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The places of ``count`` samples of a set, or of all, rising.

    One from each of ``count`` equal stretches, as sets may be sorted; at random within it, as they may be periodic too.
    """
    if count >= length:
        return np.arange(length, dtype=np.int64)
    bounds = np.arange(count + 1, dtype=np.int64) * length // count
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])


class Samples:
    """Some samples of a set, in batches, as often as one likes; ``digest`` tells what the last time through them showed."""

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
        self.places = chosen(len(dataset), count, seed)
        self.digest = ""
        """sha256 over every input that was seen: name, dtype, shape, bytes; batches count as they were."""

    def __len__(self) -> int:
        return len(self.places)

    def some(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The places of ``count`` of them, or of all, evenly over them."""
        count = min(count, len(self))
        return self.places[np.arange(count) * len(self) // max(count, 1)]

    def batches(self, what: str) -> Iterator[Batch]:
        """All of them; progress is told as ``what``."""
        digest = hashlib.sha256()
        for start in range(0, len(self), self.batch_size):
            batch = self.dataset.batch(self.places[start : start + self.batch_size])
            for name in self.dataset.input_names:
                array = batch[name]
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
            yield batch
            self.progress(what, min(start + self.batch_size, len(self)), len(self))
        self.digest = digest.hexdigest()
