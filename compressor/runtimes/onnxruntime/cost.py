"""Parameters and multiply-accumulates of an ONNX graph, counted from the graph itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.shape_inference import InferenceError, infer_shapes

from compressor.graphs.files import external_files
from compressor.runtimes.onnxruntime.inference import ERRORS, SILENT

Shape = tuple[int, ...]

_INDEX_TYPES = frozenset(
    {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
)
_PACKED = "MatMulNBits"
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU", "RNN", "Einsum")
_LARGEST_RUN_BYTES = 1_000_000_000


def parameters(model: onnx.ModelProto) -> int:
    """Values in initializers that are weights: floats and small integers of one or more dimensions.

    Shapes and indices (int64, int32, bool) and scalars do not count; what an exporter folded is counted as it is now. Of weights
    that are packed for MatMulNBits, or in blocks for DequantizeLinear, each counts, and their scales and zero-points do not.
    """
    packed: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == _PACKED:
            sizes = {one.name: one.i for one in node.attribute}
            packed |= dict.fromkeys(_sources(model, node.input[2:4]), 0) | {
                node.input[1]: sizes["K"] * sizes["N"]
            }
        if node.op_type == "DequantizeLinear" and any(
            one.name == "block_size" for one in node.attribute
        ):
            packed |= dict.fromkeys(_sources(model, node.input[1:3]), 0)
    return sum(
        packed.get(tensor.name, math.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.dims and tensor.data_type not in _INDEX_TYPES
    )


def _sources(model: onnx.ModelProto, names: Sequence[str]) -> set[str]:
    """The values of these names, and what they are cast from."""
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    return {*names, *(casts[name] for name in names if name in casts)}


def macs(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates of MatMul, Gemm and Conv for inputs of these shapes.

    Shapes inside the graph are inferred, and where inference stops, seen by running it once on zeros. None where it cannot
    be told: the graph computes in subgraphs or functions or in operators not known here, or it is too large to be run so.
    """
    nodes = [node for node in model.graph.node if _is_counted(node)]
    if model.functions or any(_is_obscure(node) for node in model.graph.node):
        return None
    shapes = _inferred(model, input_shapes)
    needed = {name for node in nodes for name in (*node.input[:2], node.output[0])}
    if unknown := sorted(needed - shapes.keys()):
        shapes |= _seen(model, input_shapes, unknown)
    if needed - shapes.keys():
        return None
    return sum(
        _COUNTERS[node.op_type](
            node, shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
        )
        for node in nodes
    )


def _is_counted(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and node.op_type in _COUNTERS


def _is_obscure(node: onnx.NodeProto) -> bool:
    """Whether a node may hold multiplications that nobody here can count."""
    in_graphs = any(
        one.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        for one in node.attribute
    )
    return in_graphs or (not _is_counted(node) and any(part in node.op_type for part in _HEAVY))


def _inferred(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every value that onnx can infer once the inputs are fixed."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in input_shapes:
            _fix(value, input_shapes[value.name])
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed.graph.ClearField("value_info")
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    try:
        graph = infer_shapes(fixed, data_prop=True).graph
    except (InferenceError, ValueError):  # ValueError: over 2 GB without external data
        return found
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.HasField("shape") and all(
            one.HasField("dim_value") for one in tensor_type.shape.dim
        ):
            found[value.name] = tuple(one.dim_value for one in tensor_type.shape.dim)
    return found


def _seen(
    model: onnx.ModelProto, input_shapes: Mapping[str, Shape], names: Sequence[str]
) -> dict[str, Shape]:
    """The shapes of the named values in one run on zeros; nothing for a model that is not whole in one small file."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    if (
        inputs.keys() - input_shapes.keys()
        or external_files(model)
        or model.ByteSize() > _LARGEST_RUN_BYTES
    ):
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {value.name for value in watched.graph.output}
    watched.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = SILENT
    feeds = {
        name: np.zeros(input_shapes[name], tensor_dtype_to_np_dtype(kind))
        for name, kind in inputs.items()
    }
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(list(names), feeds)
    except ERRORS:  # a graph that does not run has no shapes to see
        return {}
    return {name: tuple(value.shape) for name, value in zip(names, values, strict=True)}


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
