"""The updates that the tensors of an adapter stand for, and the error of rounding them.

Shapes: O outputs, I inputs, R rank. A LoRA layer has A [R, I] and B [O, R]; its update is B·A. The
factors of (IA)³ multiply, so their update is the factor minus 1. Any other tensor, such as a
magnitude of DoRA or a layer of ``modules_to_save``, is its own update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_PAIR = re.compile(r"\.lora_(embedding_)?(?P<factor>[AB])(?=\.|$)")
_FACTORS = ".ia3_l"

Tensors = Mapping[str, NDArray[np.float32]]


def scale_axis(name: str, shape: tuple[int, ...]) -> Literal[0, 1]:
    """Return the axis of the scales of a tensor: one for each vector of the rank.

    Rows of A and columns of B are such vectors; the factors of (IA)³ are one. A kernel [O, I, …] of
    a convolution is a matrix [O, I · …].
    """
    found = _PAIR.search(name)
    is_column = len(shape) > 1 and prod(shape[1:]) == 1
    return 1 if is_column or (found is not None and found["factor"] == "B") else 0


def relative_errors(exact: Tensors, rounded: Tensors) -> dict[str, float]:
    """Return, by update, the Frobenius norm of its error divided by its own.

    Args:
        exact: tensors of the adapter, by PEFT's names.
        rounded: the same tensors after rounding.
    """
    errors = {}
    for name, values in exact.items():
        found = _PAIR.search(name)
        if found is None:
            origin = 1.0 if name.endswith(_FACTORS) else 0.0
            errors[name] = _ratio(_norm(rounded[name] - values), _norm(values - origin))
        elif found["factor"] == "A":
            layer = name[: found.start()]
            other = _PAIR.sub(lambda match: match[0][:-1] + "B", name)
            if other in exact and exact[other].shape[1] == len(values):
                a, b = ((_matrix(exact[key]), _matrix(rounded[key])) for key in (name, other))
                errors[layer] = _product_error(a, b)
            else:
                for key in {name, other} & exact.keys():  # of grouped convolutions
                    errors[key] = _ratio(_norm(rounded[key] - exact[key]), _norm(exact[key]))
    return errors


def _matrix(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(len(values), -1)


def _product_error(
    a: tuple[NDArray[np.float32], NDArray[np.float32]],
    b: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> float:
    """Return ``‖B'A' - BA‖ / ‖BA‖`` of (exact, rounded) factors, without the products."""
    (a_RI, a_rounded_RI), (b_OR, b_rounded_OR) = a, b
    # B'A' - BA = (B' - B)·A' + B·(A' - A): two products of rank R, no cancellation.
    left = np.concatenate([b_rounded_OR - b_OR, b_OR], axis=1, dtype=np.float64)
    right = np.concatenate([a_rounded_RI, a_rounded_RI - a_RI], axis=0, dtype=np.float64)
    whole = _product_norm(b_OR.astype(np.float64), a_RI.astype(np.float64))
    return _ratio(_product_norm(left, right), whole)


def _product_norm(left_OR: NDArray[np.float64], right_RI: NDArray[np.float64]) -> float:
    """Return the Frobenius norm of a product: ``tr(LᵀL · RRᵀ)`` is its square."""
    squared = np.sum((left_OR.T @ left_OR) * (right_RI @ right_RI.T))
    return float(np.sqrt(max(0.0, squared)))


def _norm(values: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _ratio(error: float, whole: float) -> float:
    if error == 0.0:
        return 0.0
    return error / whole if whole > 0 else float("inf")
