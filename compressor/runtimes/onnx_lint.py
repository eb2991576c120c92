"""What a consumer of an ONNX graph with integers would refuse, or compute in float without a word; every offender by name.

What TensorRT's parser takes was tried (tensorrt-rtx 1.7): no zero-points but 0, no unsigned integers, no int32 biases, none of
ONNX Runtime's own operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compressor.config.discovery import suggestion
from compressor.errors import UsageError
from compressor.models.quantization import Target

_ROUNDING = {"QuantizeLinear", "DequantizeLinear"}
_UNSIGNED = {TensorProto.UINT8: "UINT8", TensorProto.UINT4: "UINT4", TensorProto.UINT16: "UINT16"}
_LOWEST = {
    TensorProto.UINT8: 0, TensorProto.INT8: -128, TensorProto.UINT16: 0, TensorProto.INT16: -(1 << 15), TensorProto.UINT4: 0,
    TensorProto.INT4: -8,
}  # fmt: skip
_REFUSED = {"DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"}


def lint(model: onnx.ModelProto, target: Target) -> list[str]:
    """One line for each node that the target refuses or leaves in float; none for a graph that it takes as it is meant.

    Weights need not be loaded: a constant that cannot be read is not complained of.
    """
    view = _View(model)
    return list(_for_tensorrt(view) if target == "tensorrt" else _for_onnxruntime(view))


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        UsageError: there is none of this name.
    """
    for target in get_args(Target):
        if target == name:
            known: Target = target
            return known
    raise UsageError(f"there is no target {name!r}", remedy=suggestion(name, list(get_args(Target))))


class _View:
    """A graph by names."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = list(_graphs(model.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def values(self, name: str) -> np.ndarray[Any, Any] | None:
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # damaged
            return None

    def is_dequantized(self, name: str) -> bool:
        return name in self.producers and self.producers[name].op_type == "DequantizeLinear"

    def is_weight(self, name: str) -> bool:
        """Whether a value is a constant, or the dequantized form of one."""
        return name in self.constants or (self.is_dequantized(name) and self.producers[name].input[0] in self.constants)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or '→ ' + node.output[0]}"


def _for_tensorrt(view: _View) -> Iterator[str]:
    for node in view.nodes:
        if node.domain not in {"", "ai.onnx"} and node.op_type not in {"Gelu", *_ROUNDING}:
            yield f"{_named(node)}: an operator of {node.domain}"
        elif node.op_type in _REFUSED:
            yield f"{_named(node)}: TensorRT computes QuantizeLinear and DequantizeLinear around float operators only"
        elif node.op_type in _ROUNDING and len(node.input) > 1:
            yield from (f"{_named(node)}: {complaint}" for complaint in _rounding_complaints(view, node))


def _rounding_complaints(view: _View, node: onnx.NodeProto) -> Iterator[str]:
    has_zero = len(node.input) > 2 and node.input[2]
    zero = view.constants.get(node.input[2]) if has_zero else None
    stored = view.constants.get(node.input[0])
    kind = (
        stored.data_type
        if stored is not None and node.op_type == "DequantizeLinear"
        else zero.data_type
        if zero
        else None
    )
    if kind in _UNSIGNED:
        yield f"{_UNSIGNED[kind]} integers; it takes signed ones, and may read these as such"
    elif kind == TensorProto.INT32:
        yield "an INT32 bias; leave biases in float"
    elif kind is None and not has_zero and node.op_type == "QuantizeLinear":
        yield "no zero-point, which makes it UINT8; give a zero-point of INT8"
    if zero is not None and (values := view.values(node.input[2])) is not None and values.any():
        yield f"a zero-point of {values.reshape(-1)[values.reshape(-1).nonzero()][0]}; it takes 0 alone"
    scale = view.values(node.input[1])
    if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
        yield "a scale that is not above 0"


def _for_onnxruntime(view: _View) -> Iterator[str]:
    for node in view.nodes:
        if node.op_type not in {"Conv", "MatMul", "Gemm"} or len(node.input) < 2 or not view.is_weight(node.input[1]):
            continue
        if view.is_weight(node.input[0]):
            continue
        if complaint := _left_in_float(view, node):
            yield f"{_named(node)}: {complaint}"


def _left_in_float(view: _View, node: onnx.NodeProto) -> str | None:
    if not view.is_dequantized(node.input[1]):
        return "a float weight"
    if node.op_type == "MatMul":  # with a float input it becomes MatMulNBits
        return None
    if not view.is_dequantized(node.input[0]):
        return "its input is not dequantized"
    if node.op_type == "Gemm" and _has_no_float_bias(view, node):
        return None
    readers = _after_clips(view, node.output[0])
    if readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
        return None
    if node.op_type == "Gemm":
        return "its bias is float and its result is not quantized; write it as MatMul and Add"
    return "its result is not quantized"


def _has_no_float_bias(view: _View, node: onnx.NodeProto) -> bool:
    return len(node.input) < 3 or not node.input[2] or view.is_dequantized(node.input[2])


def _after_clips(view: _View, name: str) -> list[onnx.NodeProto]:
    """What reads a value, behind a ReLU that rounding with 0 as the lowest integer makes superfluous."""
    readers = view.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in {"Relu", "Clip"}:
        behind = view.readers.get(readers[0].output[0], [])
        return behind if behind and all(_starts_at_zero(view, one) for one in behind) else readers
    return readers


def _starts_at_zero(view: _View, node: onnx.NodeProto) -> bool:
    if node.op_type != "QuantizeLinear" or len(node.input) < 3:
        return node.op_type == "QuantizeLinear"
    zero, tensor = view.values(node.input[2]), view.constants.get(node.input[2])
    if zero is None or tensor is None or tensor.data_type not in _LOWEST:
        return False
    return bool((zero.astype(np.int64) == _LOWEST[tensor.data_type]).all())
