"""Order of the rows of a projection, in blocks of the width of a head."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """An order of rows that keeps those of a head together."""

    width: int
    """Rows of a block."""
    blocks: tuple[int, ...]
    """Number of the checkpoint's block for each of the graph's."""

    @classmethod
    def by_key_head(cls, heads: int, key_heads: int, width: int) -> RowBlocks:
        """Return queries, then keys, then values of rows that the checkpoint has by key head.

        Args:
            heads: number of heads.
            key_heads: number of key heads, each with its queries, its key and its value in turn.
            width: of a head.
        """
        per_key = heads // key_heads
        starts = [key * (per_key + 2) for key in range(key_heads)]
        queries = [start + index for start in starts for index in range(per_key)]
        keys, values = ([start + per_key + part for start in starts] for part in (0, 1))
        return cls(width, (*queries, *keys, *values))

    @property
    def rows(self) -> list[int]:
        """Number of the checkpoint's row for each of the graph's."""
        return [block * self.width + row for block in self.blocks for row in range(self.width)]
