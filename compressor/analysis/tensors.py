"""Compare the weights of two models, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from compressor.runtimes.formats import StoredModel

Array = np.ndarray[Any, Any]


class TensorDifference(BaseModel):
    """A tensor of both models; ``a`` and ``b`` are its shapes, None where a model lacks it."""

    model_config = ConfigDict(frozen=True)

    name: str
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    snr_db: float | None
    """Signal-to-noise ratio, 10·log10(Σa² / Σ(a−b)²); None for equal values or unequal shapes."""
    equal: bool
    """True if all values are equal."""


def compare_tensors(a: StoredModel, b: StoredModel) -> tuple[TensorDifference, ...]:
    """Compare every weight of two models; largest difference first.

    Packed and integer weights are compared dequantized. Tensors of safetensors files are in memory
    one at a time; ONNX files and packed checkpoints are read whole.

    Args:
        a: the model to compare with.
        b: the model to compare.

    Raises:
        UsageError: a format holds no tensors that can be compared.
    """
    left, right = (model.format.tensors(model.path) for model in (a, b))
    names = dict.fromkeys((*left, *right))
    return tuple(
        sorted((_compare(name, left.get(name), right.get(name)) for name in names), key=_sort_key)
    )


def _sort_key(tensor: TensorDifference) -> tuple[bool, float, str]:
    ratio = math.inf if tensor.snr_db is None else tensor.snr_db
    return tensor.equal, ratio, tensor.name


def relative_error(values: Array, reference: Array) -> float:
    """Return Σ(values − reference)² / Σ reference²: 0 if equal, infinite for a reference of 0."""
    expected = reference.astype(np.float64)
    noise = float(np.square(values.astype(np.float64) - expected).sum())
    signal = float(np.square(expected).sum())
    return 0.0 if noise == 0 else noise / signal if signal else math.inf


def snr_db(error: float) -> float | None:
    """Return a relative error as a signal-to-noise ratio in dB; None where that is infinite."""
    return -10 * math.log10(error) if 0 < error < math.inf else None


def _compare(
    name: str, read_a: Callable[[], Array] | None, read_b: Callable[[], Array] | None
) -> TensorDifference:
    left = None if read_a is None else read_a()
    right = None if read_b is None else read_b()
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (left, right)]
    error = None
    if left is not None and right is not None:
        if right.ndim == 2 and left.shape == right.shape[::-1] != right.shape:
            right = right.T  # ONNX stores [in, out], torch [out, in]
        if left.shape == right.shape:
            error = relative_error(right, left)
    ratio = None if error is None else snr_db(error)
    return TensorDifference(name=name, a=shapes[0], b=shapes[1], snr_db=ratio, equal=error == 0)
