"""What a consumer of an ONNX graph would refuse, or compute in float without a word; every offender by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto

from compressor.config.discovery import suggestion
from compressor.errors import UsageError
from compressor.graphs.lint.tensorrt import complaints_of_tensorrt
from compressor.graphs.view import View, named
from compressor.models.quantized.quantization import Target

_LOWEST = {
    TensorProto.UINT8: 0,
    TensorProto.INT8: -128,
    TensorProto.UINT16: 0,
    TensorProto.INT16: -(1 << 15),
    TensorProto.UINT4: 0,
    TensorProto.INT4: -8,
}


def lint(model: onnx.ModelProto, target: Target, gpus: Sequence[str] = ()) -> list[str]:
    """One line for each node that the target refuses or leaves in float; none for a graph that it takes as it is meant.

    Weights need not be loaded: a constant that cannot be read is not complained of.

    Args:
        model: the graph.
        target: who is to compute.
        gpus: for TensorRT, the compute capabilities that an engine is to be built for, such as ``sm86``.
    """
    view = View(model)
    return list(
        complaints_of_tensorrt(view, gpus) if target == "tensorrt" else _for_onnxruntime(view)
    )


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        UsageError: there is none of this name.
    """
    for target in get_args(Target):
        if target == name:
            known: Target = target
            return known
    raise UsageError(
        f"there is no target {name!r}", remedy=suggestion(name, list(get_args(Target)))
    )


def _for_onnxruntime(view: View) -> Iterator[str]:
    for node in view.nodes:
        if (
            node.op_type not in {"Conv", "MatMul", "Gemm"}
            or len(node.input) < 2
            or not view.is_weight(node.input[1])
        ):
            continue
        if view.is_weight(node.input[0]):
            continue
        if complaint := _left_in_float(view, node):
            yield f"{named(node)}: {complaint}"


def _left_in_float(view: View, node: onnx.NodeProto) -> str | None:
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


def _has_no_float_bias(view: View, node: onnx.NodeProto) -> bool:
    return len(node.input) < 3 or not node.input[2] or view.is_dequantized(node.input[2])


def _after_clips(view: View, name: str) -> list[onnx.NodeProto]:
    """What reads a value, behind a ReLU that rounding with 0 as the lowest integer makes superfluous."""
    readers = view.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in {"Relu", "Clip"}:
        behind = view.readers.get(readers[0].output[0], [])
        return behind if behind and all(_starts_at_zero(view, one) for one in behind) else readers
    return readers


def _starts_at_zero(view: View, node: onnx.NodeProto) -> bool:
    if node.op_type != "QuantizeLinear" or len(node.input) < 3:
        return node.op_type == "QuantizeLinear"
    zero, tensor = view.values(node.input[2]), view.constants.get(node.input[2])
    if zero is None or tensor is None or tensor.data_type not in _LOWEST:
        return False
    return bool((zero.astype(np.int64) == _LOWEST[tensor.data_type]).all())
