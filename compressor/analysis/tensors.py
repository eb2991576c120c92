"""The weights of two models, tensor by tensor: what they are called, their shapes, and how far apart their values are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from compressor.runtimes.formats import StoredModel

Array = np.ndarray[Any, Any]


class TensorDifference(BaseModel):
    """One tensor of both models; a shape is None where one lacks it."""

    model_config = ConfigDict(frozen=True)

    name: str
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    snr_db: float | None
    """Signal-to-noise ratio of b against a, 10 · log10(Σa² / Σ(a−b)²); None where shapes differ or nothing does."""
    equal: bool


def tensor_differences(a: StoredModel, b: StoredModel) -> tuple[TensorDifference, ...]:
    """Every weight of two models, those that differ most first.

    Of models in safetensors one tensor at a time is in memory; ONNX files and packed checkpoints are read whole.

    Args:
        a: the model to compare with; packed and INT8 weights are compared as the floats they stand for.
        b: the model to compare.
    """
    left, right = (model.format.tensors(model.path) for model in (a, b))
    found = [
        _pair(name, left.get(name), right.get(name)) for name in dict.fromkeys((*left, *right))
    ]
    return tuple(
        sorted(
            found,
            key=lambda one: (one.equal, math.inf if one.snr_db is None else one.snr_db, one.name),
        )
    )


def relative_error(of: Array, against: Array) -> float:
    """Σ(of − against)² / Σ against²: 0 for equals, infinite against zeros."""
    wanted = against.astype(np.float64)
    noise = float(np.square(of.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted).sum())
    return 0.0 if noise == 0 else noise / signal if signal else math.inf


def snr_db(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio; None for none, which is infinitely many decibels."""
    return -10 * math.log10(error) if 0 < error < math.inf else None


def _pair(
    name: str, a: Callable[[], Array] | None, b: Callable[[], Array] | None
) -> TensorDifference:
    left, right = (one() if one is not None else None for one in (a, b))
    shapes = [None if one is None else tuple(one.shape) for one in (left, right)]
    error = None
    if left is not None and right is not None:
        if right.ndim == 2 and left.shape == right.shape[::-1] != right.shape:
            right = right.T  # as ONNX multiplies
        if left.shape == right.shape:
            error = relative_error(right, left)
    ratio = None if error is None else snr_db(error)
    return TensorDifference(name=name, a=shapes[0], b=shapes[1], snr_db=ratio, equal=error == 0)
