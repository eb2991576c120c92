"""Order of the rows of query and key projections in GGUF files; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

_IN_PAIRS = frozenset({"llama", "granite"})
"""``general.architecture`` in whose files rows that are rotated together are neighbours."""


def has_paired_rows(architecture: str) -> bool:
    """Return True if rows that are rotated together are neighbours in files of an architecture.

    In transformers, and in files of other architectures, they are half a head apart.
    """
    return architecture in _IN_PAIRS


def paired_rows(heads: int, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each row of such a file the row of transformers' matrix, int64 [rows].

    Args:
        heads: query or key heads of the matrix.
        rows: rows of the matrix.
    """
    order = np.arange(rows, dtype=np.int64)
    return order.reshape(heads, 2, -1).swapaxes(1, 2).ravel()
