"""Symmetric rounding of rows to 8 bits, one scale for each row.

Shapes: R rows, N values of a row. The error of a value is at most half a step, ``scale / 2``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
"""Largest magnitude of an integer; -128 is not used, so that the grid is symmetric."""


def quantize_rows(values_RN: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return the scale of each row [R] and the integers [R, N].

    The scale is the largest magnitude of the row divided by 127. A row of zeros, or of values so
    small that this quotient is zero in float32, has the scale 0.

    Args:
        values_RN: finite values.
    """
    peaks_R = np.abs(values_RN).max(axis=1, initial=0.0).astype(np.float64)
    scales_R = (peaks_R / LARGEST).astype(np.float32)
    divisors_R = np.where(scales_R > 0, scales_R, np.inf).astype(np.float64)
    rounded_RN = np.rint(values_RN.astype(np.float64) / divisors_R[:, None])
    return scales_R, rounded_RN.clip(-LARGEST, LARGEST).astype(np.int8)


def dequantize_rows(
    scales_R: NDArray[np.float32], integers_RN: NDArray[np.int8]
) -> NDArray[np.float32]:
    """Return ``scale · integer`` [R, N], one product in float32 for each value."""
    return scales_R[:, None] * integers_RN.astype(np.float32)
