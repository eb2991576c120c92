"""Order of the samples of a training.

It is a pure function of the seed, the epoch and the weights, so that a resumed run sees the same
batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Weights = np.ndarray[Any, np.dtype[np.float64]]


def epoch_order(count: int, seed: int, epoch: int, weights: Weights | None = None) -> Indices:
    """Return the samples of one epoch in their order, int64 [count].

    Without weights every sample comes once. With weights [count], sample i comes count · wᵢ / Σw
    times, rounded up or down (systematic resampling), in a random order.
    """
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        return generator.permutation(count).astype(np.int64)
    edges = np.cumsum(weights / weights.sum())
    points = (np.arange(count) + generator.random()) / count
    drawn = np.minimum(np.searchsorted(edges, points, side="right"), count - 1)
    return generator.permutation(drawn).astype(np.int64)


def step_seed(seed: int, step: int) -> int:
    """Return a seed for the dropout of one step, so that checkpoints need no generator state."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Sampler:
    """Position of a run within its epochs."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.size = min(batch_size, count)
        self.epoch, self.position = 0, 0
        self.weights: Weights | None = None
        self._order = epoch_order(count, seed, 0)

    def next(self) -> tuple[Indices, int]:
        """Return the indices of the next batch, and its epoch.

        A rest at the end of an epoch that does not fill a batch is dropped.
        """
        if self.position + self.size > self.count:
            self._start(self.epoch + 1)
        batch = self._order[self.position : self.position + self.size]
        self.position += self.size
        return batch, self.epoch

    def skip(self, batches: int) -> None:
        """Move to the position after ``batches`` calls of ``next`` from the start."""
        epoch, number = divmod(batches, self.count // self.size)
        self._start(epoch)
        self.position = number * self.size

    def reweigh(self, weights: Weights) -> None:
        """Start a new epoch, drawn with these weights [count]."""
        self.weights = weights
        self._start(self.epoch + 1)

    def _start(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        self._order = epoch_order(self.count, self.seed, epoch, self.weights)

    def state(self) -> dict[str, Any]:
        """Return the position as plain data, for ``restore``."""
        weights = None if self.weights is None else self.weights.tolist()
        return {"epoch": self.epoch, "position": self.position, "weights": weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Move to the position of a ``state``."""
        weights = state["weights"]
        self.weights = None if weights is None else np.array(weights, dtype=np.float64)
        self._start(state["epoch"])
        self.position = state["position"]
