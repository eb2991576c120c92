"""Weights in blocks of INT4, symmetric, as TensorRT takes them: DequantizeLinear with a block size, no zero-points.

Shapes: K values that are summed over, N outputs, B blocks of K / B values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

Array = np.ndarray[Any, np.dtype[np.float32]]

_HIGHEST = 7
_SHRINKS = np.linspace(1.0, 0.7, 7)
"""The parts of a block's largest magnitude that are tried as the end of its grid."""
OPSET = 21
"""ONNX's first with INT4 and blocks."""


def blocked(weight_KN: Array, size: int) -> tuple[np.ndarray[Any, Any], Array]:
    """Integers [K, N] from -7 to 7 and scales [B, N], of the grid with the least squared error of those that are tried.

    Args:
        weight_KN: float32; K is a multiple of ``size``.
        size: values in a block.
    """
    w_BSN = weight_KN.reshape(-1, size, weight_KN.shape[1])
    largest_B1N = np.abs(w_BSN).max(axis=1, keepdims=True)
    best_B1N = np.full_like(largest_B1N, np.inf)
    scales_B1N = np.ones_like(largest_B1N)
    for shrink in _SHRINKS:
        tried_B1N = np.where(
            largest_B1N > 0, largest_B1N * np.float32(shrink / _HIGHEST), 1
        ).astype(np.float32)
        error_B1N = ((_rounded(w_BSN, tried_B1N) * tried_B1N - w_BSN) ** 2).sum(
            axis=1, keepdims=True
        )
        scales_B1N = np.where(error_B1N < best_B1N, tried_B1N, scales_B1N)
        best_B1N = np.minimum(error_B1N, best_B1N)
    integers_KN = _rounded(w_BSN, scales_B1N).reshape(weight_KN.shape).astype(np.int8)
    return integers_KN, scales_B1N[:, 0]


def _rounded(w_BSN: Array, scales_B1N: Array) -> Array:
    rounded: Array = np.clip(np.rint(w_BSN / scales_B1N), -_HIGHEST, _HIGHEST)
    return rounded


def to_int4(model: ir.Model, size: int) -> tuple[int, list[str]]:
    """Store the weights of MatMul and Gemm as INT4, in place.

    A weight is a constant matrix that nothing but such products read as their second operand; one whose K is no multiple of
    ``size`` is left as it was.

    Returns:
        How many weights are INT4 now, and the names of those that were left.
    """
    done, left = 0, []
    for value in list(model.graph.initializers.values()):
        products = [
            reader
            for reader, index in value.uses()
            if reader.op_type in {"MatMul", "Gemm"} and index == 1
        ]
        is_matrix = (
            value.const_value is not None
            and value.dtype == ir.DataType.FLOAT
            and len(value.const_value.shape) == 2
        )
        if not products or len(products) < len(value.uses()) or not is_matrix:
            continue
        turned = {
            bool(one.attributes["transB"].as_int()) if "transB" in one.attributes else False
            for one in products
        }
        assert value.const_value is not None  # noqa: S101 - a matrix has values
        weight = value.const_value.numpy().astype(np.float32)
        axis = int(turned.pop())
        if turned or weight.shape[axis] % size:
            left.append(str(value.name))
            continue
        _store(model, value, weight, axis, size)
        done += 1
    return done, left


def _store(model: ir.Model, value: ir.Value, weight: Array, axis: int, size: int) -> None:
    integers, scales = blocked(weight.T if axis else weight, size)
    if axis:
        integers, scales = integers.T, scales.T
    name = str(value.name)
    stored = _constant(model, f"{name}.int4", ir.tensor(integers, ir.DataType.INT4))
    made = ir.node(
        "DequantizeLinear",
        [stored, _constant(model, f"{name}.scales", ir.tensor(np.ascontiguousarray(scales)))],
        {"axis": axis, "block_size": size},
        name=f"{name}.dequantize",
    )
    result = made.outputs[0]
    result.name, result.dtype, result.shape = (
        f"{name}.dequantized",
        ir.DataType.FLOAT,
        ir.Shape(weight.shape),
    )
    model.graph.insert_before(model.graph[0], made)
    for reader, index in list(value.uses()):
        reader.replace_input_with(index, result)
    del model.graph.initializers[name]


def _constant(model: ir.Model, name: str, tensor: Any) -> ir.Value:
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(tensor.dtype),
    )
    model.graph.initializers[name] = value
    return value
