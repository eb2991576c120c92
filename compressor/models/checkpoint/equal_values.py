"""Comparison of two stored tensors without loading them whole; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from compressor.models.checkpoint.safetensors_files import read_chunks
from compressor.models.checkpoint.weight_files import StoredTensor

_DTYPES: Mapping[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}


def values_are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    """Return True if two float tensors have equal shapes and values, in whatever dtypes.

    The comparison ends at the first chunk that differs. As in ``torch.equal``, NaN differs from
    itself, and -0 equals 0. A process compares two tensors once.
    """
    if first.entry.shape != second.entry.shape:
        return False
    if not {first.entry.dtype, second.entry.dtype} <= _DTYPES.keys():
        return False
    changed_ns = tuple(tensor.file.stat().st_mtime_ns for tensor in (first, second))
    return _compare(first, second, changed_ns)


@cache
def _compare(
    first: StoredTensor,
    second: StoredTensor,
    changed_ns: tuple[int, ...],  # noqa: ARG001  part of the cache's key
) -> bool:
    pairs = zip(_float_chunks(first), _float_chunks(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _float_chunks(tensor: StoredTensor) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the values in order; bfloat16 is the upper half of float32."""
    for chunk in read_chunks(tensor.file, tensor.entry, _DTYPES[tensor.entry.dtype]):
        if tensor.entry.dtype == "BF16":
            yield (chunk.astype(np.uint32) << 16).view(np.float32)
        else:
            yield chunk
