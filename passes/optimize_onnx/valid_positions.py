"""Positions of a batch that are not padding."""

from __future__ import annotations

from compressor.data.contract import Batch
from compressor.graphs.decoder.interface import ATTENTION_MASK
from compressor.graphs.values import Array

_RANK = 3


def mask_of(feeds: Batch) -> Array | None:
    """Return the mask of a batch of texts, bool [B, T]; None if it has none."""
    mask = feeds.get(ATTENTION_MASK)
    return None if mask is None or mask.ndim != _RANK - 1 else mask != 0


def valid_values(values: Array, feeds: Batch) -> Array:
    """Return values [P, C] at the positions that are not padding, of values [B, T, C].

    Values of other shapes are returned as they are: whether their axes are positions is not known.
    """
    mask_BT = mask_of(feeds)
    if mask_BT is None or values.ndim != _RANK or values.shape[:2] != mask_BT.shape:
        return values
    selected: Array = values[mask_BT]
    return selected
