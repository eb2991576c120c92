"""Rules of ONNX Runtime: products with a constant weight that it computes in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.problem import Problem, Rule

_PRODUCTS = {"Conv", "MatMul", "Gemm"}
_LOWEST = {
    TensorProto.UINT8: 0,
    TensorProto.INT8: -128,
    TensorProto.UINT16: 0,
    TensorProto.INT16: -(1 << 15),
    TensorProto.UINT4: 0,
    TensorProto.INT4: -8,
}


def onnxruntime_problems(index: GraphIndex) -> Iterator[Problem]:
    """Yield the products with a weight for which ONNX Runtime has no integer kernel."""
    for node in index.nodes:
        if node.op_type not in _PRODUCTS or len(node.input) < 2:
            continue
        if not index.is_weight(node.input[1]) or index.is_weight(node.input[0]):
            continue
        if reason := _float_reason(index, node):
            yield Problem.of(node, Rule.FLOAT_OPERATOR, reason)


def _float_reason(index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """Return why a product is computed in float, or None if it is not."""
    if not index.is_dequantized(node.input[1]):
        return "a float weight"
    if node.op_type == "MatMul":  # with a float input it becomes MatMulNBits
        return None
    if not index.is_dequantized(node.input[0]):
        return "its input is not dequantized"
    if node.op_type == "Gemm" and _has_no_float_bias(index, node):
        return None
    consumers = _consumers_behind_clip(index, node.output[0])
    if consumers and all(consumer.op_type == "QuantizeLinear" for consumer in consumers):
        return None
    if node.op_type == "Gemm":
        return "its bias is float and its result is not quantized; write it as MatMul and Add"
    return "its result is not quantized"


def _has_no_float_bias(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return len(node.input) < 3 or not node.input[2] or index.is_dequantized(node.input[2])


def _consumers_behind_clip(index: GraphIndex, name: str) -> list[onnx.NodeProto]:
    """Return what reads a value, behind a ReLU that quantization makes redundant.

    It is redundant where 0 is the lowest integer: rounding clips negative values by itself.
    """
    consumers = index.consumers.get(name, [])
    if len(consumers) == 1 and consumers[0].op_type in {"Relu", "Clip"}:
        behind = index.consumers.get(consumers[0].output[0], [])
        clips = bool(behind) and all(_clips_at_zero(index, node) for node in behind)
        return behind if clips else consumers
    return consumers


def _clips_at_zero(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Return True if a node is QuantizeLinear whose lowest integer stands for 0."""
    if node.op_type != "QuantizeLinear" or len(node.input) < 3:
        return node.op_type == "QuantizeLinear"
    zero, tensor = index.array(node.input[2]), index.constants.get(node.input[2])
    if zero is None or tensor is None or tensor.data_type not in _LOWEST:
        return False
    return bool((zero.astype(np.int64) == _LOWEST[tensor.data_type]).all())
