"""Order of the rows of query and key projections in GGUF files; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

_IN_PAIRS = frozenset({"llama", "granite"})
"""``general.architecture`` in whose files rows that are rotated together are neighbours.

In transformers, and in files of other architectures, they are half a head apart."""
_HALVED_BY_SECTIONS = frozenset({"glm4"})
"""``general.architecture`` of classes that rotate neighbours, while llama.cpp rotates rows that are
half the rotated width apart once the file has sections of positions (M-RoPE)."""


def rows_in_file(
    architecture: str, heads: int, rows: int, sectioned_width: int | None
) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return for each row of the file the row of transformers' matrix, int64 [rows].

    Args:
        architecture: ``general.architecture``.
        heads: query or key heads of the matrix.
        rows: rows of the matrix.
        sectioned_width: rotated values of a head if the file has sections of positions; else None.

    Returns:
        The order; None if the rows stay as they are.
    """
    order = np.arange(rows, dtype=np.int64).reshape(heads, -1)
    if architecture in _IN_PAIRS:
        return order.reshape(heads, 2, -1).swapaxes(1, 2).ravel()
    if sectioned_width is not None and architecture in _HALVED_BY_SECTIONS:
        rotated, rest = order[:, :sectioned_width], order[:, sectioned_width:]
        return np.concatenate([rotated[:, ::2], rotated[:, 1::2], rest], axis=1).ravel()
    return None
