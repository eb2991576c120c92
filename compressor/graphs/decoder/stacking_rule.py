"""Query heads that share a key head, for checks before a graph is built: imports no onnx."""

from __future__ import annotations

SMALLEST_GROUP = 4
"""Query heads of a key head from which stacked heads are faster (docs/decisions/0038)."""


def is_large_group(heads: int, key_heads: int) -> bool:
    """Return True if so many query heads share a key head that stacked heads are faster."""
    return heads >= SMALLEST_GROUP * key_heads
