"""Comparison of a changed ONNX graph with its parent, output by output.

Shapes: N samples, V values of one output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import NumericalError
from compressor.runtimes.formats import open_session

Array = np.ndarray[Any, Any]
_NUMBERS = "biuf"
"""Kinds of NumPy's dtypes that are compared."""
_LEAST_AXES = 2
"""Axes of an output that has one for the samples."""


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """Difference of one output from the parent's, over all samples."""

    max_abs: float
    """Largest absolute difference of any value."""
    cosine: float
    """Smallest cosine similarity of any sample."""
    relative_error: float
    """Mean over the samples of ‖Δ‖ / ‖parent's values‖, of those whose values are not all 0."""
    other_shapes: int
    """Samples whose output has another shape, such as another number of boxes; the rest is of the
    others."""

    def describe(self) -> str:
        """Return the difference in words, for messages."""
        if self.other_shapes:
            return f"other shapes for {self.other_shapes} samples"
        return f"relative error {self.relative_error:.2g}, largest |Δ| {self.max_abs:.2g}"

    def row(self) -> dict[str, float | int]:
        """Return the difference as a row of the manifest."""
        others = {"samples_of_other_shapes": self.other_shapes} if self.other_shapes else {}
        return {
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "relative_error": self.relative_error,
            **others,
        }


def compare_graphs(
    parent: Path, changed: Path, feeds: Sequence[Batch], threads: int
) -> dict[str, OutputDifference]:
    """Compare the numeric outputs of a graph with those of its parent, in ONNX Runtime.

    Args:
        parent: folder of the parent's graph.
        changed: folder of the changed graph, whose outputs have the same names.
        feeds: batches of samples.
        threads: threads of one operator.

    Raises:
        NumericalError: the changed graph computes NaN or infinity where its parent does not.
    """
    with (
        open_session("onnx", parent, threads=threads) as reference,
        open_session("onnx", changed, threads=threads) as session,
    ):
        return compare_runs(reference.run, session.run, feeds)


def compare_runs(
    expected: Callable[[Batch], Batch], actual: Callable[[Batch], Batch], feeds: Sequence[Batch]
) -> dict[str, OutputDifference]:
    """Compare the numeric outputs of two models; arguments and errors as ``compare_graphs``."""
    differences: dict[str, list[tuple[Array, Array, Array] | int]] = {}
    for batch in feeds:
        outputs, others = expected(batch), actual(batch)
        sizes = {len(array) for array in batch.values() if array.ndim}
        for name, values in outputs.items():
            pair = _comparable(values, others[name], sizes)
            if pair is not None:
                differences.setdefault(name, []).append(_differences(name, *pair))
    return {name: _merged(parts) for name, parts in differences.items()}


def _comparable(values: object, others: object, sizes: set[int]) -> tuple[Array, Array] | None:
    """Return the values of an output in rows, of two models; None for texts and maps.

    A sequence of arrays is one row, and so is an output without an axis of samples: its first axis
    is that of no input, or its only one.

    Args:
        values: the output of the parent.
        others: that of the changed graph.
        sizes: sizes of the first axes of the inputs.
    """
    if isinstance(values, list) and isinstance(others, list):
        parts, other_parts = list(map(np.asarray, values)), list(map(np.asarray, others))
        if all(part.dtype.kind in _NUMBERS for part in parts):
            return _row(parts), _row(other_parts)
    if not isinstance(values, np.ndarray) or not isinstance(others, np.ndarray):
        return None
    if values.dtype.kind not in _NUMBERS:
        return None
    if values.ndim < _LEAST_AXES or len(values) not in sizes:
        return _row([values]), _row([others])
    return _flatten(values), _flatten(others)


def _row(parts: Sequence[Array]) -> Array:
    """Return the values of several arrays one behind the other, float64 [1, V]."""
    flat = [part.reshape(-1).astype(np.float64) for part in parts]
    return np.concatenate([np.empty(0), *flat])[None]


def _flatten(values: Array) -> Array:
    """Return the values of each sample in a row, float64 [N, V]."""
    rows = values.shape[:1]
    return values.reshape(*rows, math.prod(values.shape[1:])).astype(np.float64)


def _differences(
    name: str, expected_NV: Array, actual_NV: Array
) -> tuple[Array, Array, Array] | int:
    """Return largest difference, cosine and relative error of each sample.

    The relative error is NaN where the parent's values are all 0. An output of another shape gives
    the number of samples instead: one for an output without rows, such as that of no detections.
    """
    if expected_NV.shape != actual_NV.shape:
        return max(1, len(expected_NV))
    finite = np.isfinite(expected_NV)
    if not np.isfinite(actual_NV[finite]).all():
        raise NumericalError(f"the converted graph computes NaN or infinity in {name}")
    expected_NV, actual_NV = (np.where(finite, array, 0) for array in (expected_NV, actual_NV))
    difference_NV = actual_NV - expected_NV
    error_N = np.linalg.norm(difference_NV, axis=1)
    lengths_N = np.linalg.norm(expected_NV, axis=1)
    products_N = lengths_N * np.linalg.norm(actual_NV, axis=1)
    dots_N = (expected_NV * actual_NV).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        both_zero_N = (lengths_N == 0) & (error_N == 0)
        cosine_N = np.where(products_N > 0, dots_N / products_N, both_zero_N.astype(np.float64))
        relative_N = np.where(lengths_N > 0, error_N / lengths_N, np.nan)
    return np.abs(difference_NV).max(axis=1, initial=0.0), cosine_N, relative_N


def _merged(parts: Sequence[tuple[Array, Array, Array] | int]) -> OutputDifference:
    others = sum(part for part in parts if isinstance(part, int))
    compared = [part for part in parts if not isinstance(part, int)]
    if not compared:
        return OutputDifference(0.0, 1.0, 0.0, others)
    largest_N, cosine_N, relative_N = (
        np.concatenate(arrays) for arrays in zip(*compared, strict=True)
    )
    known_N = relative_N[np.isfinite(relative_N)]
    return OutputDifference(
        float(largest_N.max(initial=0.0)),
        float(cosine_N.min(initial=1.0)),
        float(known_N.mean()) if len(known_N) else 0.0,
        others,
    )
