"""Keys that each query attends to, as masks; for decoders of transformers and other modules.

Shapes: B batch, H query heads, Q queries, K keys, D values of a head. A position is the number of
tokens before a token in its sequence, padding left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """Queries and keys of a layer, for selections that look at the scores."""

    queries_BHQD: Tensor
    keys_BHKD: Tensor
    """Keys of each query head; those of a shared head are repeated."""


class KeySelection(ABC):
    """Restricts the keys that the queries of a layer attend to; never to later ones than causal."""

    @abstractmethod
    def allowed(self, queries_BQ: Tensor, keys_BK: Tensor, scored: Scored) -> Tensor:
        """Return True where a query attends to a key, bool [B or 1, H or 1, Q, K].

        Args:
            queries_BQ: positions of the queries, int64; B may be 1.
            keys_BK: positions of the keys, int64; B may be 1.
            scored: queries and keys; most selections ignore them.
        """


def causal_mask(queries_BQ: Tensor, keys_BK: Tensor) -> Tensor:
    """Return True where a key is not later than a query, bool [B, 1, Q, K]."""
    return keys_BK[:, None, None, :] <= queries_BQ[:, None, :, None]


def local_mask(queries_BQ: Tensor, keys_BK: Tensor, sinks: int, window: int) -> Tensor:
    """Return the mask of sinks and a window, causal, bool [B, 1, Q, K].

    A query at position q sees the key at position k ≤ q if k < sinks or q - k < window
    (StreamingLLM, Xiao et al. 2023).
    """
    keys, queries = keys_BK[:, None, None, :], queries_BQ[:, None, :, None]
    return (keys <= queries) & ((keys < sinks) | (queries - keys < window))


@dataclass(frozen=True, slots=True)
class LocalSelection(KeySelection):
    """Some heads attend to sinks and a window, and the others to all keys."""

    local_H: tuple[bool, ...]
    """True for each query head that is local."""
    sinks: int
    window: int

    @classmethod
    def of_key_heads(
        cls, heads: Sequence[int], key_heads: int, heads_per_key: int, sinks: int, window: int
    ) -> LocalSelection:
        """Return the selection in which the query heads of some key-value heads are local."""
        chosen = {*heads}
        local = tuple(head in chosen for head in range(key_heads) for _ in range(heads_per_key))
        return cls(local, sinks, window)

    def allowed(self, queries_BQ: Tensor, keys_BK: Tensor, scored: Scored) -> Tensor:
        """See ``KeySelection.allowed``."""
        del scored
        full = causal_mask(queries_BQ, keys_BK)
        local = local_mask(queries_BQ, keys_BK, self.sinks, self.window)
        is_local_H = torch.tensor(self.local_H, device=full.device)
        return torch.where(is_local_H[None, :, None, None], local, full)


@dataclass(frozen=True, slots=True)
class BlockGlobalSelection(KeySelection):
    """Blocks and a global stride in all heads: O(n√n) pairs for a block and a stride of √n.

    A query sees its own block, and every ``stride``-th key; queries at multiples of ``stride`` see
    all keys. An untrained model does not survive it: its first tokens and the preceding block are
    missing, which ``sinks`` and ``preceding`` add.
    """

    block: int
    stride: int
    sinks: int = 0
    preceding: bool = False
    """True if a query also sees the block before its own."""

    def allowed(self, queries_BQ: Tensor, keys_BK: Tensor, scored: Scored) -> Tensor:
        """See ``KeySelection.allowed``."""
        del scored
        keys, queries = keys_BK[:, None, None, :], queries_BQ[:, None, :, None]
        blocks_back = queries // self.block - keys // self.block
        near = blocks_back <= int(self.preceding)
        everywhere = (keys % self.stride == 0) | (queries % self.stride == 0)
        return (keys <= queries) & (near | everywhere | (keys < self.sinks))


@dataclass(frozen=True, slots=True)
class DynamicSelection(KeySelection):
    """The keys with the largest scores, and a window, in all heads.

    It is an oracle: the choice needs every score, so no memory and little time is saved.
    """

    top_k: int
    window: int
    grow_from: int | None = None
    """Keys from which ``top_k`` grows in proportion to their number; None for a constant one."""

    def allowed(self, queries_BQ: Tensor, keys_BK: Tensor, scored: Scored) -> Tensor:
        """See ``KeySelection.allowed``."""
        causal = causal_mask(queries_BQ, keys_BK)
        scores = scored.queries_BHQD @ scored.keys_BHKD.transpose(-1, -2)
        scores = scores.masked_fill(~causal, float("-inf"))
        count_BQ = torch.full_like(queries_BQ, self.top_k)
        if self.grow_from is not None:
            grown = self.top_k * (queries_BQ + 1) // self.grow_from
            count_BQ = torch.maximum(count_BQ, grown)
        most = min(int(count_BQ.max()), scores.shape[-1])
        largest = scores.topk(most, dim=-1).values
        last = (count_BQ.clamp(max=most) - 1)[:, None, :, None].expand(*scores.shape[:3], 1)
        threshold = largest.gather(-1, last)
        return causal & ((scores >= threshold) | local_mask(queries_BQ, keys_BK, 0, self.window))
