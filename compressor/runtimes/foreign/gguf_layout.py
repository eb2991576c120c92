"""Sizes of the tensors in GGUF files, and the check that the file holds them.

Blocks are those of ``ggml_type`` in https://github.com/ggml-org/ggml/blob/master/src/ggml.c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DEFAULT_ALIGNMENT = 32
_BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F64": (1, 8),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "IQ4_NL": (32, 18),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
"""Tensor type to the values and the bytes of one block."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Position of the data of a tensor in the file."""

    name: str
    dtype: str
    values: int
    row: int
    """Values of the first dimension, which blocks divide."""
    offset: int
    """Bytes from the start of all data."""


def check_places(
    places: Sequence[TensorPlace], header_bytes: int, alignment: object, file_bytes: int
) -> None:
    """Check that the data of every tensor are in the file, aligned, and each its own.

    Args:
        places: the tensors.
        header_bytes: size of the header, behind which the data start.
        alignment: value of ``general.alignment``; None for the default.
        file_bytes: size of the file.

    Raises:
        ValueError: they are not.
    """
    step = _DEFAULT_ALIGNMENT if alignment is None else alignment
    if not isinstance(step, int) or step < 1 or step & (step - 1):
        raise ValueError(f"an alignment of {step}")
    start = math.ceil(header_bytes / step) * step
    end = 0
    for place in sorted(places, key=lambda each: each.offset):
        if place.offset % step or place.offset < end:
            raise ValueError(f"the data of {place.name} are not aligned, or overlap others")
        end = place.offset + _size(place)
        if start + end > file_bytes:
            raise ValueError(
                f"the data of {place.name} end at byte {start + end:,} of {file_bytes:,}"
            )


def _size(place: TensorPlace) -> int:
    """Return the bytes of a tensor; at least 0 of a type that is not known."""
    values, size = _BLOCKS.get(place.dtype, (1, 0))
    if place.row % values:
        raise ValueError(f"{place.name}: rows of {place.row} in blocks of {values} values")
    return place.values // values * size
