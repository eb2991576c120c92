"""A data set that is simply arrays, for sources whose samples do not change from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressor.data.contract import Batch, Dataset

Array = np.ndarray[Any, Any]


class ArrayDataset(Dataset):
    """Rows of equally long arrays."""

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
        """The rows at ``indices``."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def strata(self) -> Mapping[str, Array]:
        """By the answer, where a sample has one."""
        if self.label_name is None or self.arrays[self.label_name].ndim > 1:
            return {}
        return {"class": self.arrays[self.label_name].astype(str)}

    def class_names(self) -> tuple[str, ...] | None:
        """The names that were given."""
        return self._classes


def sampled(count: int, wanted: int | None, seed: int) -> Array:
    """Positions of ``wanted`` of ``count`` items, drawn without repetition, in rising order; all of them for None."""
    if wanted is None or wanted >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted]).astype(np.int64)
