"""Key-value caches of a decoder's graph, and the attention mask over them.

Shapes: B sequences, T new tokens, P positions in the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from compressor.data.contract import Batch
from compressor.graphs.decoder.cache_bounds import PIECE_ROWS
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.runtimes.onnxruntime.decoder.binding import BoundSession
from compressor.runtimes.onnxruntime.decoder.dropped_positions import DroppedPositions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class CacheState:
    """Everything in a cache that a call changes."""

    lengths_B: Array
    """Valid tokens of each sequence."""
    mask_BP: Array
    """Attention mask of a growing cache; unused by shared buffers."""
    buffers: Batch
    """Keys and values by the names of the graph's inputs."""


class KeyValueCache(ABC):
    """Keys and values of a batch of sequences.

    Attributes:
        layout: names, shapes and types of the buffers.
        state: replaced on each call, never changed in place, so that a failed call can be undone.
        pads_left: True if the padding of several prompts precedes their tokens.
    """

    state: CacheState
    pads_left: bool = False
    chunked_prefill: ClassVar[bool]
    """True if a long prompt of one sequence may be appended in chunks."""
    batched_appends: ClassVar[bool]
    """True if several sequences can append more than one token each behind a prompt."""

    def __init__(self, layout: KvCacheLayout) -> None:
        self.layout = layout

    @abstractmethod
    def total_length(self, new_B: Array, tokens: int, *, padded: bool) -> int:
        """Return the number of positions after ``tokens`` more.

        Args:
            new_B: valid tokens among the new ones, for each sequence.
            tokens: new tokens, padding included.
            padded: True if the new tokens hold padding.
        """

    @abstractmethod
    def append(self, new_B: Array, tokens: int, total: int) -> Array:
        """Append the new tokens and return the attention mask, int64 [B, total]."""

    def bind_once(self, session: BoundSession) -> None:  # noqa: ARG002
        """Bind what stays the same for all runs of a session."""
        return

    def bind(self, session: BoundSession, total: int) -> None:  # noqa: ARG002
        """Bind what changes: the keys and values of a run that ends with ``total`` positions."""
        return

    def finish(self, session: BoundSession) -> None:  # noqa: ARG002
        """Store the keys and values of a run that has ended."""
        return

    def takes(self, tokens: int) -> bool:  # noqa: ARG002
        """Return True if so many tokens can be appended in one call."""
        return True

    def can_resume(self, tokens: int | None = None) -> bool:  # noqa: ARG002
        """Return True if the sequences can be continued behind their first tokens.

        Args:
            tokens: number of these; None for all.
        """
        return True

    @abstractmethod
    def reset(self) -> None:
        """Remove all tokens."""

    @abstractmethod
    def truncate(self, tokens: int) -> None:
        """Remove all but the first tokens of sequences without padding.

        ``can_resume`` must be true for them.
        """

    def valid(self) -> Batch:
        """Return the keys and values up to the length of the longest sequence, [B, N, P, H]."""
        return self.layout.first(self.state.buffers, int(self.state.lengths_B.max()))


class SharedBuffers(KeyValueCache):
    """Buffers of full capacity that the graph updates in place (``target: onnxruntime``).

    Each sequence is contiguous: new tokens follow its last valid one, and overwrite padding. ONNX
    Runtime's attention appends one token at a time to several sequences of different lengths.
    Bounded caches drop positions that nothing reads any more.
    """

    chunked_prefill = True
    batched_appends = False

    def __init__(self, layout: KvCacheLayout, batch_size: int, capacity: int) -> None:
        super().__init__(layout)
        self._batch_size = batch_size
        self._ones_1P = np.ones((1, capacity), dtype=np.int64)
        self._buffers = layout.zeros(batch_size, capacity)
        self._dropped = DroppedPositions(layout, self._buffers)
        self._whole: Batch = {}
        """All positions of bounded caches, in a first prompt that is longer than their buffers."""
        self.reset()

    def bind_once(self, session: BoundSession) -> None:
        """Bind the buffers as past and as present."""
        session.bind_in_place(self._buffers)
        session.bind_inputs(self._dropped.inputs)

    def total_length(self, new_B: Array, tokens: int, *, padded: bool) -> int:
        """See ``KeyValueCache.total_length``; padding takes positions in the first call only."""
        return tokens if padded else int((self.state.lengths_B + new_B).max())

    def append(self, new_B: Array, tokens: int, total: int) -> Array:
        """See ``KeyValueCache.append``."""
        self._make_space(tokens)
        lengths_B = self.state.lengths_B + new_B
        self.state = CacheState(lengths_B, self.state.mask_BP, self._buffers)
        if self._batch_size == 1 and int(lengths_B[0]) == total:
            return self._ones_1P[:, :total]
        return (np.arange(total) < lengths_B[:, None]).astype(np.int64)

    def _make_space(self, tokens: int) -> None:
        """Drop rows of bounded caches, or allocate all of them for a long first prompt."""
        rows = self._dropped.fewest_rows
        if rows is not None and tokens > rows and not self.state.lengths_B.any():
            bounded = (array for array in self.layout.arrays if array.bound)
            self._whole = {
                array.name: replace(array, bound=None).zeros(self._batch_size, tokens)
                for array in bounded
            }
        for sequence, length in enumerate(self.state.lengths_B.tolist()):
            self._dropped.make_space(sequence, length, tokens)

    def bind(self, session: BoundSession, total: int) -> None:
        """See ``KeyValueCache.bind``."""
        del total
        session.bind_in_place(self._whole)

    def finish(self, session: BoundSession) -> None:
        """See ``KeyValueCache.finish``."""
        if self._whole:
            self._dropped.store(self._whole, self.state.lengths_B)
            session.bind_in_place({name: self._buffers[name] for name in self._whole})
            self._whole = {}

    def takes(self, tokens: int) -> bool:
        """See ``KeyValueCache.takes``."""
        is_first = not self.state.lengths_B.any()
        return is_first or not self.layout.bounds or tokens <= PIECE_ROWS

    def can_resume(self, tokens: int | None = None) -> bool:
        """See ``KeyValueCache.can_resume``: bounded caches may have dropped the last of these."""
        lengths_B = self.state.lengths_B if tokens is None else self._shortened(tokens)
        return all(map(self._dropped.can_resume, range(self._batch_size), lengths_B.tolist()))

    def valid(self) -> Batch:
        """See ``KeyValueCache.valid``; of bounded caches the positions that they hold."""
        longest = int(self.state.lengths_B.argmax())
        return {
            array.name: array.first(
                self.state.buffers[array.name],
                int(self.state.lengths_B[longest]) - self._dropped.number(array.bound, longest),
            )
            for array in self.layout.arrays
        }

    def reset(self) -> None:
        """See ``KeyValueCache.reset``."""
        mask_BP = np.zeros((self._batch_size, 0), dtype=np.int64)
        lengths_B = np.zeros(self._batch_size, dtype=np.int64)
        for sequence in range(self._batch_size):
            self._dropped.clear(sequence)
        self.state = CacheState(lengths_B, mask_BP, self._buffers)

    def truncate(self, tokens: int) -> None:
        """See ``KeyValueCache.truncate``."""
        self.state = CacheState(self._shortened(tokens), self.state.mask_BP, self._buffers)

    def _shortened(self, tokens: int) -> Array:
        lengths_B: Array = np.minimum(self.state.lengths_B, tokens)
        return lengths_B


class GrowingBuffers(KeyValueCache):
    """Buffers that are exactly as long as the sequences (``target: portable``, traced graphs).

    Padding keeps its positions. States of recurrent layers have one size, and are replaced by each
    call.
    """

    chunked_prefill = False
    batched_appends = True

    def __init__(self, layout: KvCacheLayout, batch_size: int, *, pads_left: bool) -> None:
        """Create an empty cache.

        Args:
            layout: names, shapes and types of the buffers.
            batch_size: number of sequences.
            pads_left: True if padding precedes the tokens of a first prompt.
        """
        super().__init__(layout)
        self._batch_size, self.pads_left = batch_size, pads_left
        self.reset()

    def total_length(self, new_B: Array, tokens: int, *, padded: bool) -> int:
        """See ``KeyValueCache.total_length``."""
        del new_B, padded
        return int(self.state.mask_BP.shape[1]) + tokens

    def append(self, new_B: Array, tokens: int, total: int) -> Array:
        """See ``KeyValueCache.append``."""
        del total
        order_T = np.arange(tokens)[::-1] if self.pads_left else np.arange(tokens)
        valid_BT = (order_T < new_B[:, None]).astype(np.int64)
        mask_BP = np.concatenate([self.state.mask_BP, valid_BT], axis=1)
        self.state = CacheState(self.state.lengths_B + new_B, mask_BP, self.state.buffers)
        return mask_BP

    def bind(self, session: BoundSession, total: int) -> None:
        """See ``KeyValueCache.bind``: past keys and values, and longer buffers for the result."""
        past, state = self.state.buffers, self.state
        present = self.layout.zeros(self._batch_size, total)
        session.bind_present(present)
        session.bind_inputs(past)
        self.state = CacheState(state.lengths_B, state.mask_BP, present)

    def reset(self) -> None:
        """See ``KeyValueCache.reset``."""
        self.state = CacheState(
            np.zeros(self._batch_size, dtype=np.int64),
            np.zeros((self._batch_size, 0), dtype=np.int64),
            self.layout.zeros(self._batch_size, 0),
        )

    def truncate(self, tokens: int) -> None:
        """See ``KeyValueCache.truncate``."""
        self.state = self.copied(tokens)

    def copied(self, tokens: int) -> CacheState:
        """Return a copy of the first tokens of sequences without padding."""
        kept = self.layout.first(self.state.buffers, tokens)
        buffers = {name: array.copy() for name, array in kept.items()}
        lengths_B = np.minimum(self.state.lengths_B, tokens)
        return CacheState(lengths_B, self.state.mask_BP[:, :tokens], buffers)
