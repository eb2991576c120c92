"""Positions that bounded caches have dropped, in buffers that are updated in place.

Rows of a bounded cache are dropped some at a time: those behind them move to their place, and the
graph is told by its input how many positions are missing.

Shapes: B sequences, N key heads of width H, R rows of a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.cache_layout import CachedArray, KvCacheLayout

Array = np.ndarray[Any, Any]


class DroppedPositions:
    """Dropped positions of several sequences for each bound of a cache.

    Attributes:
        inputs: inputs of the graph, int64 [B] for each bound; they are updated in place.
    """

    def __init__(self, layout: KvCacheLayout, buffers: Batch) -> None:
        """Start with nothing dropped.

        Args:
            layout: names and bounds of the buffers.
            buffers: keys and values [B, N, R, H] of all sequences by the names of the inputs.
        """
        self._buffers = buffers
        self._arrays: dict[CacheBound, list[CachedArray]] = {
            bound: [array for array in layout.arrays if array.bound == bound]
            for bound in layout.bounds
        }
        sequences = len(next(iter(buffers.values())))
        self.inputs = {
            bound.input_name: np.zeros(sequences, dtype=np.int64) for bound in layout.bounds
        }

    @property
    def fewest_rows(self) -> int | None:
        """Rows of the smallest bounded buffer; None without bounds."""
        sizes = [
            self._buffers[array.name].shape[2]
            for arrays in self._arrays.values()
            for array in arrays
        ]
        return min(sizes, default=None)

    def number(self, bound: CacheBound | None, sequence: int) -> int:
        """Return how many positions caches of a bound have dropped; 0 without one."""
        return 0 if bound is None else int(self.inputs[bound.input_name][sequence])

    def can_resume(self, sequence: int, length: int) -> bool:
        """Return True if the next token of a sequence can follow its first ``length`` tokens."""
        return not length or all(
            self.number(bound, sequence) <= bound.most_dropped(length) for bound in self._arrays
        )

    def make_space(self, sequence: int, length: int, tokens: int) -> None:
        """Drop rows if the buffers lack space for new tokens.

        Args:
            sequence: index of the sequence.
            length: its tokens that stay.
            tokens: new tokens, at most ``PIECE_ROWS``.
        """
        if not length:
            self.clear(sequence)
        for bound, arrays in self._arrays.items():
            dropped_B = self.inputs[bound.input_name]
            rows = length - int(dropped_B[sequence])
            capacity = self._buffers[arrays[0].name].shape[2]
            moved = rows - bound.kept
            if rows + tokens <= min(bound.limit(tokens), capacity) or moved <= 0:
                continue
            for array in arrays:
                cached_NRH = self._buffers[array.name][sequence]
                cached_NRH[:, bound.sinks : bound.kept] = cached_NRH[:, bound.sinks + moved : rows]
            dropped_B[sequence] += moved

    def store(self, arrays: Batch, lengths_B: Array) -> None:
        """Copy what stays of longer arrays, which hold all positions, into the buffers.

        Args:
            arrays: keys and values [B, N, P, H] by the names of the inputs.
            lengths_B: valid tokens of each sequence.
        """
        for bound, bounded in self._arrays.items():
            dropped_B = self.inputs[bound.input_name]
            dropped_B[:] = np.maximum(lengths_B - bound.kept, 0)
            for array in bounded:
                pairs = zip(lengths_B.tolist(), dropped_B.tolist(), strict=True)
                for sequence, (length, dropped) in enumerate(pairs):
                    target, source = self._buffers[array.name][sequence], arrays[array.name]
                    first = bound.sinks + dropped
                    target[:, : bound.sinks] = source[sequence, :, : bound.sinks]
                    target[:, bound.sinks : length - dropped] = source[sequence, :, first:length]

    def clear(self, sequence: int) -> None:
        """Note that a sequence is empty."""
        for dropped_B in self.inputs.values():
            dropped_B[sequence] = 0

    def copy(self, source: int, target: int) -> None:
        """Note that the rows of one sequence were copied to another."""
        for dropped_B in self.inputs.values():
            dropped_B[target] = dropped_B[source]

    def swap(self, first: int, second: int) -> None:
        """Note that the rows of two sequences were exchanged."""
        for dropped_B in self.inputs.values():
            dropped_B[[first, second]] = dropped_B[[second, first]]
