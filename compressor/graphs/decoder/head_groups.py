"""Groups of a layer's key heads, each with an attention node and a cache of its own.

A layer whose heads see different positions (``attention_pattern.json``) has a group of full heads,
and one of local heads, which attend to some first tokens and a window. Every other layer has one
group. Shapes: N heads and M key heads of width H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.models.attention_patterns.record import LocalHeads


@dataclass(frozen=True, slots=True)
class HeadGroup:
    """Key heads of a layer that see the same positions."""

    key_heads: tuple[int, ...]
    """Their indices, ascending."""
    window: int | None = None
    """Last tokens that they attend to; None for all."""
    bound: CacheBound | None = None
    """Bound of their cache."""
    is_local: bool = False
    """True for local heads of a pattern."""

    @property
    def prefix(self) -> str:
        """Prefix of the names of their caches and nodes."""
        return "local_" if self.is_local else ""


def local_bound(local: LocalHeads) -> CacheBound:
    """Return the bound of the caches of local heads."""
    return CacheBound(local.window, local.sinks)


def mixed_groups(local: LocalHeads, key_heads: int) -> tuple[HeadGroup, ...]:
    """Return the groups of a layer with local heads: full ones first, if there are any."""
    full = tuple(head for head in range(key_heads) if head not in local.heads)
    group = HeadGroup(local.heads, local.window, local_bound(local), is_local=True)
    return (HeadGroup(full), group) if full else (group,)


def query_heads(group: HeadGroup, per_key: int) -> list[int]:
    """Return the heads that share the key heads of a group."""
    return [key * per_key + index for key in group.key_heads for index in range(per_key)]


def projection_order(
    groups: Sequence[HeadGroup], per_key: int, *, by_group: bool
) -> tuple[int, ...]:
    """Return the order in which heads of queries, keys and values follow each other in a product.

    Args:
        groups: of the layer.
        per_key: heads that share a key head.
        by_group: True for queries, keys and values of the first group, then of the next;
            False for all queries, then all keys, then all values.

    Returns:
        Blocks of H rows among those of the checkpoint: N of queries, M of keys, M of values.
    """
    keys = sum(len(group.key_heads) for group in groups)
    parts = [
        (
            query_heads(group, per_key),
            [keys * per_key + head for head in group.key_heads],
            [keys * (per_key + 1) + head for head in group.key_heads],
        )
        for group in groups
    ]
    ordered = parts if by_group else zip(*parts, strict=True)
    return tuple(block for part in ordered for blocks in part for block in blocks)


def runs_of_heads(groups: Sequence[HeadGroup]) -> list[tuple[int, int]]:
    """Return group and number of consecutive key heads, in the order of the checkpoint."""
    owner = {head: number for number, group in enumerate(groups) for head in group.key_heads}
    runs: list[tuple[int, int]] = []
    for head in sorted(owner):
        if runs and runs[-1][0] == owner[head]:
            runs[-1] = (owner[head], runs[-1][1] + 1)
        else:
            runs.append((owner[head], 1))
    return runs
