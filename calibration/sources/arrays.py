"""Data set of arrays, for sources whose samples do not change from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from compressor.data.contract import Batch, Dataset

Array = np.ndarray[Any, Any]


class ArrayDataset(Dataset):
    """Arrays of equal length; sample i is row i of each.

    Args:
        arrays: the arrays by name.
        inputs: names of the inputs, in the order of the model.
        label: name of the labels; None if there are none.
        classes: names of the classes in the order of the labels.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        inputs: tuple[str, ...],
        label: str | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.arrays = dict(arrays)
        self.input_names = inputs
        self.label_name = label
        self._classes = classes

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, indices: Array, epoch: int = 0) -> Batch:  # noqa: ARG002
        """Return the rows at ``indices``."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def strata(self) -> Mapping[str, Array]:
        """Return the class of each sample; nothing for labels of more than one dimension."""
        if self.label_name is None or self.arrays[self.label_name].ndim > 1:
            return {}
        return {"class": self.arrays[self.label_name].astype(str)}

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes."""
        return self._classes


def draw_indices(count: int, num_samples: int | None, seed: int) -> Array:
    """Return the indices of samples drawn without replacement, int64, in increasing order.

    Args:
        count: number of samples to draw from.
        num_samples: number of samples to draw; None for all.
        seed: seed of the draw.
    """
    if num_samples is None or num_samples >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(count)[:num_samples]).astype(np.int64)


class _Draw(Protocol):
    """Config of a draw: ``num_samples`` and ``seed``."""

    @property
    def num_samples(self) -> int | None: ...
    @property
    def model_fields_set(self) -> set[str]: ...


def draw_problems(config: _Draw) -> list[str]:
    """Return a message if ``seed`` is set and nothing is drawn."""
    if "seed" in config.model_fields_set and config.num_samples is None:
        return ["`seed` has no effect without `num_samples`: leave it out, or set `num_samples`"]
    return []
