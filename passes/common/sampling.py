"""Which samples a step sees: a pure function of the seed, the epoch and the weights, so that a resumed run sees the same."""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Weights = np.ndarray[Any, np.dtype[np.float64]]


def epoch_order(count: int, seed: int, epoch: int, weights: Weights | None = None) -> Indices:
    """The samples of one epoch, in order: int64 [count].

    Without weights every sample comes once. With weights [count], sample i comes count · wᵢ / Σw times, rounded up or
    down (systematic resampling), in a random order.
    """
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        return generator.permutation(count).astype(np.int64)
    edges = np.cumsum(weights / weights.sum())
    points = (np.arange(count) + generator.random()) / count
    drawn = np.minimum(np.searchsorted(edges, points, side="right"), count - 1)
    return generator.permutation(drawn).astype(np.int64)


class Sampler:
    """Where a run is in its epochs. ``state`` is plain data for a checkpoint."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.size = min(batch_size, count)
        self.epoch, self.position = 0, 0
        self.weights: Weights | None = None
        self._order = epoch_order(count, seed, 0)

    def next(self) -> tuple[Indices, int]:
        """The next batch's indices and its epoch; what is left over at an epoch's end is not used."""
        if self.position + self.size > self.count:
            self._start(self.epoch + 1)
        batch = self._order[self.position : self.position + self.size]
        self.position += self.size
        return batch, self.epoch

    def skip(self, batches: int) -> None:
        """Go on where ``next`` would be after so many calls."""
        epoch, number = divmod(batches, self.count // self.size)
        self._start(epoch)
        self.position = number * self.size

    def reweigh(self, weights: Weights) -> None:
        """Start a new epoch, drawn by these weights."""
        self.weights = weights
        self._start(self.epoch + 1)

    def _start(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        self._order = epoch_order(self.count, self.seed, epoch, self.weights)

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        weights = None if self.weights is None else self.weights.tolist()
        return {"epoch": self.epoch, "position": self.position, "weights": weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.weights = (
            None if state["weights"] is None else np.array(state["weights"], dtype=np.float64)
        )
        self._start(state["epoch"])
        self.position = state["position"]
