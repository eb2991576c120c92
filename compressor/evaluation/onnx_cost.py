"""Parameters and multiply-accumulates of an ONNX graph, counted from the graph itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx.shape_inference import InferenceError, infer_shapes

Shape = tuple[int, ...]

_INDEX_TYPES = frozenset(
    {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
)
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU", "RNN", "Einsum")


def parameters(model: onnx.ModelProto) -> int:
    """Values in initializers that are weights: floats and small integers of one or more dimensions.

    Shapes and indices (int64, int32, bool) and scalars do not count; what an exporter folded is counted as it is now.
    """
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.dims and tensor.data_type not in _INDEX_TYPES
    )


def macs(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates of MatMul, Gemm and Conv for inputs of these shapes.

    None where it cannot be told: a shape is unknown, or the graph computes in subgraphs or in operators not known here.
    """
    shapes = _shapes(model, input_shapes)
    if shapes is None or model.functions:
        return None
    total = 0
    for node in model.graph.node:
        count = _COUNTERS.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        if count is not None:
            sizes = [shapes.get(name) for name in (*node.input[:2], node.output[0])]
            left, right, out = sizes
            if left is None or right is None or out is None:
                return None
            total += count(node, left, right, out)
        elif any(part in node.op_type for part in _HEAVY) or any(
            attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for attribute in node.attribute
        ):
            return None
    return total


def _shapes(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """The shape of every value that can be inferred once the inputs are fixed."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in input_shapes:
            _fix(value, input_shapes[value.name])
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed.graph.ClearField("value_info")
    try:
        inferred = infer_shapes(fixed, data_prop=True)
    except (InferenceError, ValueError):  # ValueError: over 2 GB without external data
        return None
    found = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.HasField("shape") and all(one.HasField("dim_value") for one in tensor_type.shape.dim):
            found[value.name] = tuple(one.dim_value for one in tensor_type.shape.dim)
    return found


def _fix(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size


def _matmul(node: onnx.NodeProto, left: Shape, right: Shape, out: Shape) -> int:  # noqa: ARG001
    return math.prod(out) * left[-1]


def _gemm(node: onnx.NodeProto, left: Shape, right: Shape, out: Shape) -> int:  # noqa: ARG001
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[0 if transposed else 1]


def _conv(node: onnx.NodeProto, left: Shape, right: Shape, out: Shape) -> int:  # noqa: ARG001
    return math.prod(out) * math.prod(right[1:])


def _transposed_conv(node: onnx.NodeProto, left: Shape, right: Shape, out: Shape) -> int:  # noqa: ARG001
    return math.prod(left) * math.prod(right[1:])


_COUNTERS: dict[str, Callable[[onnx.NodeProto, Shape, Shape, Shape], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _transposed_conv,
}
