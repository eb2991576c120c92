"""Positions of samples that an attention mask keeps, for runtimes that compute whole sequences."""

from __future__ import annotations

import numpy as np

from compressor.errors import DataError
from compressor.runtimes.session import Array


def valid_ranges(mask_BT: Array, runtime: str) -> list[slice]:
    """Return the range of positions of each sample that a mask keeps.

    Args:
        mask_BT: ``attention_mask``.
        runtime: its name, for the message.

    Raises:
        DataError: a mask has gaps, or leaves out all tokens of a sample.
    """
    ranges = []
    for number, mask_T in enumerate(mask_BT):
        kept = np.flatnonzero(mask_T)
        if not len(kept) or kept[-1] - kept[0] + 1 != len(kept):
            what = "leaves out tokens between others" if len(kept) else "leaves out all tokens"
            raise DataError(
                f"attention_mask of sample {number} {what}, which {runtime} cannot compute",
                remedy="pad samples at their beginning or end",
            )
        ranges.append(slice(int(kept[0]), int(kept[-1]) + 1))
    return ranges
