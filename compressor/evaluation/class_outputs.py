"""Find the classes in an output of any name: their axis, and whether values are probabilities.

Shapes: N samples, C classes, P positions; a detector has D boxes of C values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compressor.errors import DataError
from compressor.evaluation.metrics import MAX_CHUNK_VALUES, Array, metric_named
from compressor.models.capabilities.signature import describe_shape

LOGITS = "logits"
Scale = Literal["logits", "probabilities", "scores", "integers"]
"""Values of a position: logits; probabilities, which sum to 1; independent scores from 0 to 1; or
8-bit integers."""
_CLASSES_RANK, _SEQUENCE_RANK, _IMAGE_RANK = 2, 3, 4
_BOX_VALUES = 4
_NMS_VALUES = (6, 7)
"""Values of a box behind non-maximum suppression: corners, score, class, and maybe the image."""
_SUM_TOLERANCE = {"float16": 1e-2}
_DEFAULT_SUM_TOLERANCE = 2e-3
_FARTHEST_SUM = 2.0
"""Probabilities that were rounded to 8 bits sum to another value than 1, within this factor."""


def _other_metrics(output: str, one_number: bool) -> str:
    """Return a remedy: metrics of outputs without classes."""
    if one_number:
        return "use `mse` or `spearman` with labels, or `correlation` with a reference"
    return f"use `relative_error:{output}`, `cosine:{output}` or `max_abs:{output}`"


def shape_problem(
    metric: str, output: str, shape: Sequence[int | str], *, named: bool
) -> str | None:
    """Return why an output has no classes, from the shape that a model declares or outputs.

    Args:
        metric: the metric, for the message.
        output: the output.
        shape: its dimensions; a name stands for a size that varies.
        named: True if the user has named the output, or its name states logits.
    """
    sizes = describe_shape(shape)
    if len(shape) < _CLASSES_RANK:
        return f"{metric} compares classes, and `{output}` {sizes} has one value per sample"
    if not named and len(shape) != _CLASSES_RANK:
        return (
            f"{metric} names no output, and the only output `{output}` {sizes} is not [N, classes];"
            f" if it has classes, name it, as in `{metric.partition(', ')[0]}:{output}`"
        )
    axis = 1 if len(shape) >= _IMAGE_RANK else -1
    if shape[axis] == 1:
        where = "one channel" if axis == 1 else "one score per position"
        return f"{metric} compares classes, and `{output}` {sizes} has {where}"
    if len(shape) == _CLASSES_RANK and isinstance(shape[1], str):
        return (
            f"{metric} compares classes, and the last axis of `{output}` {sizes} varies, so it has "
            "no fixed classes"
        )
    return None


@dataclass(frozen=True, slots=True)
class ClassReading:
    """The axis of the classes of an output, and the scale of its values."""

    output: str
    axis: int
    """1 or -1."""
    scale: Scale

    def note(self, metrics: Sequence[str], shape: Sequence[int]) -> str | None:
        """Return a line that states the reading; None where the output's name states it."""
        if self.scale == "logits" and LOGITS in self.output:
            return None
        where = "axis 1" if self.axis == 1 and len(shape) > _CLASSES_RANK else "the last axis"
        meaning = {
            "logits": "logits",
            "probabilities": "probabilities, since they sum to 1",
            "scores": "independent scores, since they lie between 0 and 1 and do not sum to 1",
            "integers": "integer scores",
        }[self.scale]
        return (
            f"{', '.join(metrics)}: `{self.output}` has {shape[self.axis]} classes in {where} of "
            f"{describe_shape(('N', *shape[1:]))}, read as {meaning}"
        )

    def as_logits(self, values_PC: Array) -> Array:
        """Return logits whose softmax are the probabilities.

        A probability that the dtype has rounded to 0 counts as the smallest that it holds.
        """
        if self.scale != "probabilities":
            return values_PC
        smallest = float(np.finfo(values_PC.dtype).smallest_subnormal)
        log_PC: Array = np.log(np.maximum(values_PC.astype(np.float64), smallest))
        return log_PC


def class_axis(values: Array, labels: Array | None, output: str) -> int:
    """Return the axis of the classes, 1 or -1.

    Labels decide where their shape fits one of them alone; then values that sum to 1; otherwise it
    is axis 1 of images [N, C, H, W] and of volumes, and else the last.
    """
    if values.ndim == _CLASSES_RANK:
        return -1
    default = 1 if values.ndim >= _IMAGE_RANK else -1
    if labels is not None:
        fits = [
            axis
            for axis, positions in ((1, (len(values), *values.shape[2:])), (-1, values.shape[:-1]))
            if labels.shape == positions
        ]
        return fits[0] if len(fits) == 1 else default
    if LOGITS in output or not np.issubdtype(values.dtype, np.floating):
        return default
    by_sums = [axis for axis in (default, -1 if default == 1 else 1) if _sums_to_one(values, axis)]
    return by_sums[0] if by_sums else default


def read_scale(values_PC: Array, output: str) -> Scale:
    """Return the scale of values, from the positions of a first batch."""
    if values_PC.dtype.kind in "iu":
        return "integers"
    if not values_PC.size or values_PC.min() < 0 or values_PC.max() > 1 + _tolerance(values_PC):
        return "logits"
    if _sums_to_one(values_PC, -1):
        return "probabilities"
    is_constant = values_PC.min() == values_PC.max()
    return "logits" if LOGITS in output or is_constant else "scores"


def check_classes(values: Array, metrics: Sequence[str], output: str) -> None:
    """Check that an output of a first batch has classes at all.

    Raises:
        DataError: it holds class ids, boxes, a map of one channel, or one score per position.
    """
    listed, sizes = ", ".join(metrics), list(values.shape)
    problem: str | None = None
    named = LOGITS in output or any(":" in name for name in metrics)
    if values.dtype.kind == "b" or (values.dtype.kind in "iu" and values.dtype.itemsize > 1):
        problem = f"{listed} compares classes, and `{output}` {sizes} holds {values.dtype} values"
    elif (shape := shape_problem(listed, output, sizes, named=named)) is not None:
        problem = shape
    elif LOGITS not in output and (kind := _kind_of_detector(values, output)) is not None:
        problem = f"{listed} compares classes, and `{output}` {sizes} holds {kind}"
    elif (
        LOGITS not in output
        and values.ndim == _SEQUENCE_RANK
        and values.shape[1] == values.shape[2]
        and not _sums_to_one(values, -1)
        and not _sums_to_one(values, 1)
    ):
        problem = f"{listed} compares classes, and `{output}` {sizes} is a map of one value"
    if problem is not None:
        raise DataError(problem, remedy=_other_metrics(output, values.size == len(values)))


def check_distribution(scale: Scale, metrics: Sequence[str], output: str) -> None:
    """Check that metrics of a distribution have one.

    Raises:
        DataError: values are independent scores or integers.
    """
    listed = [name for name in metrics if metric_named(name).of_distribution]
    if listed and scale in {"scores", "integers"}:
        why = "do not sum to 1" if scale == "scores" else "are 8-bit integers"
        raise DataError(
            f"{', '.join(listed)} compares distributions, and the values of `{output}` {why}: "
            "they are neither probabilities nor logits",
            remedy=f"use `agreement:{output}` for the class with the largest score, or "
            f"`relative_error:{output}`",
        )


def check_same_scale(values_PC: Array, reading: ClassReading, other: str, this: str) -> None:
    """Check that a model's values have the scale of the reference's.

    Args:
        values_PC: values of the model at scored positions.
        reading: the reading of the reference.
        other: the reference, for the message.
        this: the model, for the message.

    Raises:
        DataError: one has probabilities and the other has not.
    """
    if reading.scale == "probabilities":
        sums = values_PC.sum(axis=-1, dtype=np.float64)
        fits = not values_PC.size or bool(
            values_PC.min() >= 0 and sums.min() > 1 / _FARTHEST_SUM and sums.max() < _FARTHEST_SUM
        )
    else:
        fits = read_scale(values_PC, reading.output) != "probabilities"
    if not fits:
        first, second = ("probabilities", "logits")
        if reading.scale != "probabilities":
            first, second = second, first
        raise DataError(
            f"`{reading.output}` of {other} holds {first}, and that of {this} {second}",
            remedy="compare models that both end with the softmax, or both before it",
        )


def first_rows(values: Array, counted: Array) -> Array:
    """Return scored positions [P, C] of an output [N, ..., C], as many as are looked at."""
    limit = max(1, MAX_CHUNK_VALUES // values.shape[-1])
    rows_PC: Array = values.reshape(counted.size, -1)[np.flatnonzero(counted)[:limit]]
    return rows_PC


def _tolerance(values: Array) -> float:
    return _SUM_TOLERANCE.get(str(values.dtype), _DEFAULT_SUM_TOLERANCE)


def _sums_to_one(values: Array, axis: int) -> bool:
    if values.shape[axis] < _CLASSES_RANK or values.min() < 0:
        return False
    return bool(np.abs(values.sum(axis=axis, dtype=np.float64) - 1).max() <= _tolerance(values))


def _kind_of_detector(values: Array, output: str) -> str | None:
    """Return what a detector's output holds; None for other outputs.

    Four values of a box lie outside [0, 1], in pixels, and all scores beside them inside.
    """
    if values.ndim != _SEQUENCE_RANK:
        return None
    if values.shape[-1] == _BOX_VALUES and "box" in output.lower():
        return "boxes"
    for axis in (2, 1):
        rows_DC = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        if rows_DC.shape[1] <= _BOX_VALUES:
            continue
        outside_C = (rows_DC.min(axis=0) < 0) | (rows_DC.max(axis=0) > 1)
        if outside_C[:_BOX_VALUES].any() and not outside_C[_BOX_VALUES:].any():
            return f"boxes and class scores (4 + {rows_DC.shape[1] - _BOX_VALUES})"
        if rows_DC.shape[1] in _NMS_VALUES and _has_class_ids(rows_DC):
            return "boxes with the id of a class each"
    return None


def _has_class_ids(rows_DC: Array) -> bool:
    """Return True if one column holds ids, another scores, and others pixels."""
    are_ids_C = (rows_DC == np.round(rows_DC)).all(axis=0)
    are_scores_C = (rows_DC.min(axis=0) >= 0) & (rows_DC.max(axis=0) <= 1) & ~are_ids_C
    return bool(are_ids_C.any() and are_scores_C.any() and (rows_DC.max(axis=0) > 1).any())
