"""Caches of decoder graphs: names, shapes and types of the inputs that hold them.

Shapes: B sequences, N key heads of width H, P cached positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import ModelError
from compressor.graphs.decoder.cache_bounds import CacheBound, bounds_from_json
from compressor.graphs.decoder.interface import BOUNDED_CACHES_KEY, PAST_PREFIX, PRESENT_PREFIX

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
}


@dataclass(frozen=True, slots=True)
class CachedArray:
    """One input of a decoder's cache: keys or values, or the state of a recurrent layer."""

    name: str
    """``past_key_values.<layer>.key``, ``.value`` or ``.<state>``."""
    shape: tuple[int | None, ...]
    """Sizes after the batch; None for the cached positions, which a state does not have."""
    dtype: np.dtype[Any]
    bound: CacheBound | None = None
    """Positions that it may be limited to; None for all."""

    @property
    def positions_axis(self) -> int | None:
        """The axis of the cached positions; None for a state."""
        return self.shape.index(None) + 1 if None in self.shape else None

    def zeros(self, batch_size: int, capacity: int) -> np.ndarray[Any, Any]:
        """Return zeros for ``capacity`` positions: keys are [B, N, rows, H]."""
        return np.zeros((batch_size, *self.sizes(capacity)), dtype=self.dtype)

    def sizes(self, capacity: int) -> tuple[int, ...]:
        """Return the sizes after the batch of a buffer for sequences of ``capacity`` positions."""
        rows = capacity if self.bound is None else min(capacity, self.bound.rows)
        return tuple(rows if size is None else size for size in self.shape)

    def first(self, array: np.ndarray[Any, Any], positions: int) -> np.ndarray[Any, Any]:
        """Return a view of the first positions; a state as a whole."""
        axis = self.positions_axis
        return array if axis is None else array[(slice(None),) * axis + (slice(positions),)]


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    """The cache of a decoder: keys and values, and the states of recurrent layers."""

    arrays: tuple[CachedArray, ...]

    @classmethod
    def from_inputs(
        cls, inputs: Sequence[Any], metadata: Mapping[str, str] = MappingProxyType({})
    ) -> KvCacheLayout | None:
        """Return the layout of a graph's cache; None if the graph has no cache.

        Args:
            inputs: the inputs of a session of ONNX Runtime.
            metadata: of the graph, with the bounds of its caches.

        Raises:
            ModelError: keys and values are not [B, N, P, H] of floats or int8, with known N and H;
                the metadata is damaged.
        """
        caches = [value for value in inputs if value.name.startswith(PAST_PREFIX)]
        if not caches:
            return None
        if unfit := [value for value in caches if not _is_known(value)]:
            described = ", ".join(f"{value.name} {value.shape} {value.type}" for value in unfit)
            raise ModelError(
                f"the graph has the caches {described}; expected float32, float16 or int8 "
                "[batch, key heads, past, head width], or states of fixed sizes [batch, …]",
                remedy="export the model again",
            )
        names = [value.name for value in caches]
        bounds = bounds_from_json(metadata.get(BOUNDED_CACHES_KEY), names)
        return cls(
            tuple(
                CachedArray(
                    value.name,
                    tuple(size if isinstance(size, int) else None for size in value.shape[1:]),
                    _DTYPES[value.type],
                    bounds.get(value.name),
                )
                for value in caches
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(array.name for array in self.arrays)

    @property
    def bounds(self) -> tuple[CacheBound, ...]:
        """The different bounds of its arrays."""
        return tuple(dict.fromkeys(array.bound for array in self.arrays if array.bound))

    def without_bounds(self) -> KvCacheLayout:
        """Return the same cache with all positions of each array."""
        return KvCacheLayout(tuple(replace(array, bound=None) for array in self.arrays))

    @property
    def has_states(self) -> bool:
        """True if layers have states, which cannot be shortened to the first tokens."""
        return any(array.positions_axis is None for array in self.arrays)

    def zeros(self, batch_size: int, capacity: int) -> Batch:
        """Return zero buffers for ``capacity`` positions; with 0, what a first call reads."""
        return {array.name: array.zeros(batch_size, capacity) for array in self.arrays}

    def first(self, buffers: Batch, positions: int) -> Batch:
        """Return views of the first positions of buffers; states as a whole."""
        return {array.name: array.first(buffers[array.name], positions) for array in self.arrays}

    @property
    def token_bytes(self) -> int:
        """Bytes of one position in arrays that hold all positions."""
        growing = [a for a in self.arrays if a.bound is None and a.positions_axis is not None]
        return KvCacheLayout(tuple(growing)).size_bytes(1, 1)

    def size_bytes(self, batch_size: int, capacity: int) -> int:
        """Return the bytes of buffers for ``capacity`` positions."""
        values = (array.dtype.itemsize * math.prod(array.sizes(capacity)) for array in self.arrays)
        return batch_size * sum(values)

    @staticmethod
    def present_name(name: str) -> str:
        """Return the output that holds an input's keys or values after a call."""
        return PRESENT_PREFIX + name.removeprefix(PAST_PREFIX)


def _is_known(value: Any) -> bool:
    """Return True for a known type, and at most one variable size after that of the batch."""
    variable = sum(not isinstance(size, int) for size in value.shape[1:])
    return value.type in _DTYPES and len(value.shape) > 1 and variable <= 1
