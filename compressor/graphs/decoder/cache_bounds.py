"""Bounds of caches: the positions that attention with a window still reads.

A layer with a window reads the last positions alone, and its cache may drop the others. The rows of
a cache hold the remaining positions in order. The graph has an input for the number of positions
that were dropped; its default is 0, so that a runtime that drops nothing need not set it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.errors import ModelError
from compressor.graphs.decoder.interface import BOUNDED_CACHES_KEY

SPARE_ROWS = 32
"""Rows that stay although the next token does not read them, so that some tokens can be removed."""
PIECE_ROWS = 128
"""Rows for the new tokens of one call."""
_LEAST_STEPS = 16


@dataclass(frozen=True, slots=True)
class CacheBound:
    """Positions that attention reads: some first ones, and a window of the last ones."""

    window: int
    """Last positions, that of the query included."""
    sinks: int = 0
    """First positions, which are never dropped (Xiao et al. 2023, arXiv:2309.17453)."""

    @property
    def input_name(self) -> str:
        """Name of the graph's input, int64 [B]: positions behind the sinks that were dropped."""
        return f"dropped_positions.{self.window}" + (f".{self.sinks}" if self.sinks else "")

    @property
    def kept(self) -> int:
        """Rows that stay when others are dropped."""
        return self.sinks + self.window - 1 + SPARE_ROWS

    @property
    def rows(self) -> int:
        """Rows of a buffer."""
        return self.kept + PIECE_ROWS

    def limit(self, tokens: int) -> int:
        """Return the rows beyond which rows are dropped before a call of so many new tokens.

        Single tokens read all rows: more frequent drops cost less than rows that are masked.
        """
        steps = min(max(self.window // 8, _LEAST_STEPS), PIECE_ROWS)
        return self.kept + steps if tokens == 1 else self.rows

    def most_dropped(self, length: int) -> int:
        """Return how many positions the cache of a sequence may lack when its next token is read.

        Args:
            length: tokens of the sequence.
        """
        return max(length - self.sinks - (self.window - 1), 0)


def bounds_as_json(caches: Mapping[str, CacheBound]) -> str:
    """Return the text for ``BOUNDED_CACHES_KEY``: bounds of caches by the names of the inputs."""
    return json.dumps(
        [
            {
                "window": bound.window,
                "sinks": bound.sinks,
                "caches": [name for name, other in caches.items() if other == bound],
            }
            for bound in dict.fromkeys(caches.values())
        ],
        separators=(",", ":"),
    )


def bounds_from_json(text: str | None, caches: Sequence[str]) -> dict[str, CacheBound]:
    """Return bounds by the names of inputs, from a graph's metadata.

    Args:
        text: the entry of ``BOUNDED_CACHES_KEY``; None for a graph without bounds.
        caches: names of the graph's caches.

    Raises:
        ModelError: the text is damaged, or names caches that the graph lacks.
    """
    try:
        bounds = {
            str(name): CacheBound(int(entry["window"]), int(entry["sinks"]))
            for entry in json.loads(text or "[]")
            for name in entry["caches"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged() from error
    if not {*bounds} <= {*caches} or any(b.window < 1 or b.sinks < 0 for b in bounds.values()):
        raise _damaged()
    return bounds


def _damaged() -> ModelError:
    return ModelError(
        f"{BOUNDED_CACHES_KEY} of the graph's metadata is damaged", remedy="export the model again"
    )
