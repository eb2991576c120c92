"""Parameters and multiply-accumulates (MACs) of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.shape_inference import InferenceError, infer_shapes

from compressor.graphs.files import external_files
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, session_options

Shape = tuple[int, ...]

_INDEX_TYPES = frozenset(
    {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
)
_PACKED = "MatMulNBits"
_PACKED_EXPERTS = "QMoE"
_UNCOUNTED = ("MatMul", "MoE", "Gemm", "Conv", "Attention", "LSTM", "GRU", "RNN", "Einsum")
"""Parts of the names of operators that multiply in ways that are not counted here."""
_MAX_RUN_BYTES = 1_000_000_000


def count_parameters(model: onnx.ModelProto) -> int:
    """Return the number of values in weights: initializers with dimensions, float or small integer.

    Shapes and indices (int64, int32, bool) and scalars are not counted; constants that an exporter
    folded are counted as they are now. Where no weight is an initializer, as paddle2onnx writes
    graphs, the tensors of Constant nodes are the weights. Weights packed for MatMulNBits and QMoE,
    or stored in blocks for DequantizeLinear, are counted value by value, without their scales and
    zero-points.
    """
    return sum(map(_graph_parameters, _graphs(model.graph)))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _graph_parameters(graph: onnx.GraphProto) -> int:
    """Return the number of values in the weights of one graph."""
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == _PACKED:
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            counts |= dict.fromkeys(_with_cast_sources(graph, node.input[2:4]), 0)
            counts[node.input[1]] = sizes["K"] * sizes["N"]
        if node.op_type == _PACKED_EXPERTS:
            [bits] = [entry.i for entry in node.attribute if entry.name == "expert_weight_bits"]
            scales_and_zeros = (node.input[3], node.input[6], *node.input[11:13])
            counts |= dict.fromkeys(_with_cast_sources(graph, scales_and_zeros), 0)
            packed = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
            counts |= {name: packed[name] * 8 // bits for name in (node.input[2], node.input[5])}
        if node.op_type == "DequantizeLinear" and any(
            attribute.name == "block_size" for attribute in node.attribute
        ):
            counts |= dict.fromkeys(_with_cast_sources(graph, node.input[1:3]), 0)
    weights = list(_weights(graph.initializer)) or list(_weights(_constants(graph)))
    return sum(counts.get(tensor.name, math.prod(tensor.dims)) for tensor in weights)


def _weights(tensors: Iterable[onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in tensors if tensor.dims and tensor.data_type not in _INDEX_TYPES)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of Constant nodes."""
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (entry.t for entry in node.attribute if entry.name == "value")


def _with_cast_sources(graph: onnx.GraphProto, names: Sequence[str]) -> set[str]:
    """Return the names, and those of the values they are cast from."""
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    return {*names, *(casts[name] for name in names if name in casts)}


def count_macs(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> int | None:
    """Return the multiply-accumulates of products, convolutions and recurrent layers.

    Shapes inside the graph follow from those of the inputs; where inference fails, they are
    observed in one run on zeros. None if MACs cannot be counted: the graph has subgraphs, functions
    or operators not known here that multiply, or shapes cannot be inferred and it is too large for
    a run.
    """
    nodes = [node for node in model.graph.node if _is_counted(node)]
    if model.functions or any(_is_uncountable(node) for node in model.graph.node):
        return None
    shapes = _infer_shapes(model, input_shapes)
    needed = {name for node in nodes for name in (*node.input[:2], node.output[0]) if name}
    if unknown := sorted(needed - shapes.keys()):
        shapes |= _observe_shapes(model, input_shapes, unknown)
    if needed - shapes.keys():
        return None
    return sum(
        _COUNTERS[node.op_type](
            node, shapes[node.input[0]], shapes[node.input[1]], shapes.get(node.output[0], ())
        )
        for node in nodes
    )


def _is_counted(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and node.op_type in _COUNTERS


def _is_uncountable(node: onnx.NodeProto) -> bool:
    """Return True if a node may hold multiplications that are not counted here."""
    has_subgraph = any(
        attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        for attribute in node.attribute
    )
    multiplies = any(part in node.op_type for part in _UNCOUNTED)
    return has_subgraph or (multiplies and not _is_counted(node))


def _infer_shapes(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of every value that onnx can infer once the input shapes are fixed."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in input_shapes:
            _fix_shape(value, input_shapes[value.name])
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed.graph.ClearField("value_info")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    try:
        graph = infer_shapes(fixed, data_prop=True).graph
    except (InferenceError, ValueError):  # ValueError: over 2 GB without external data
        return shapes
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        dimensions = tensor_type.shape.dim
        if tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in dimensions):
            shapes[value.name] = tuple(size.dim_value for size in dimensions)
    return shapes


def _fix_shape(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):  # the file states none
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    for dimension, size in zip(tensor.shape.dim, shape, strict=True):
        dimension.dim_value = size


def _observe_shapes(
    model: onnx.ModelProto, input_shapes: Mapping[str, Shape], names: Sequence[str]
) -> dict[str, Shape]:
    """Return the shapes of the named values in one run on zeros.

    Empty if the model is large, has external data, or does not run.
    """
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    if (
        inputs.keys() - input_shapes.keys()
        or external_files(model)
        or model.ByteSize() > _MAX_RUN_BYTES
    ):
        return {}
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    outputs = {value.name for value in observed.graph.output}
    observed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    feeds = {
        name: np.zeros(input_shapes[name], tensor_dtype_to_np_dtype(element_type))
        for name, element_type in inputs.items()
    }
    try:
        session = onnxruntime.InferenceSession(
            observed.SerializeToString(), session_options(optimize=False), providers=CPU
        )
        values = session.run(list(names), feeds)
    except ERRORS:  # a graph that does not run has no shapes to observe
        return {}
    return {name: tuple(value.shape) for name, value in zip(names, values, strict=True)}


# Shapes of the two factors and of the product, by the names of ONNX: a, b and y.


def _matmul(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:  # noqa: ARG001
    return math.prod(y) * a[-1]


def _gemm(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:  # noqa: ARG001
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(y) * a[0 if transposed else 1]


def _conv(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:  # noqa: ARG001
    return math.prod(y) * math.prod(b[1:])


def _transposed_conv(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:  # noqa: ARG001
    return math.prod(a) * math.prod(b[1:])


def _recurrent(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:  # noqa: ARG001
    """Count both weights: [directions, gates · hidden, width] and [.., gates · hidden, hidden]."""
    hidden = next(entry.i for entry in node.attribute if entry.name == "hidden_size")
    return math.prod(a[:-1]) * math.prod(b[:-1]) * (b[-1] + int(hidden))


_COUNTERS: dict[str, Callable[[onnx.NodeProto, Shape, Shape, Shape], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _transposed_conv,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}
