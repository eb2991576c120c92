"""Rules of TensorRT: nodes that it refuses, or silently computes as something else.

Every rule was tried with tensorrt-rtx 1.7, and tests hold it against that version: no zero-points
but 0, no unsigned integers, no INT32 biases, no INT8 constants but those that are dequantized, none
of ONNX Runtime's own operators, no operands of different float types, no types that a GPU has no
kernels for, and what ``tensorrt_operators`` finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.problem import Problem, Rule
from compressor.graphs.lint.tensorrt_operators import operator_problems

_ROUNDING = {"QuantizeLinear", "DequantizeLinear"}
_UNSIGNED: dict[int, str] = {
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT4: "UINT4",
    TensorProto.UINT16: "UINT16",
}
_UNSUPPORTED: dict[int, str] = {
    TensorProto.INT16: "INT16",
    TensorProto.FLOAT8E5M2: "FLOAT8E5M2",
    TensorProto.FLOAT8E4M3FNUZ: "FLOAT8E4M3FNUZ",
    TensorProto.FLOAT8E5M2FNUZ: "FLOAT8E5M2FNUZ",
}
_INTEGER_OPERATORS = {
    "DynamicQuantizeLinear",
    "QLinearMatMul",
    "QLinearConv",
    "MatMulInteger",
    "ConvInteger",
}
_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}
_INPUT_TYPES = {
    TensorProto.UNDEFINED,
    *_FLOATS,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.BOOL,
}
_PRODUCTS = {"MatMul", "Gemm"}
_TURING = 75
_FIRST_WITH_FP8 = 89


def tensorrt_problems(index: GraphIndex, gpus: Sequence[str]) -> Iterator[Problem]:
    """Yield what TensorRT refuses, or cannot compute on one of the GPUs.

    Args:
        index: the graph.
        gpus: compute capabilities such as ``sm86``; empty to skip the rules that depend on them.
    """
    yield from _input_problems(index)
    yield from operator_problems(index)
    for node in index.nodes:
        if node.domain not in {"", "ai.onnx"} and node.op_type not in {"Gelu", *_ROUNDING}:
            yield Problem.of(node, Rule.FOREIGN_OPERATOR, f"an operator of {node.domain}")
        elif node.op_type in _INTEGER_OPERATORS:
            detail = (
                "TensorRT computes QuantizeLinear and DequantizeLinear around float operators only"
            )
            yield Problem.of(node, Rule.FOREIGN_OPERATOR, detail)
        elif node.op_type in _ROUNDING and len(node.input) > 1:
            yield from _rounding_problems(index, node)
        elif name := _integer_constant(index, node):
            detail = f"reads the INT8 constant {name}; TensorRT dequantizes it first"
            yield Problem.of(node, Rule.INTEGER_CONSTANT, detail)
        elif mixed := _mixed_types(index, node):
            yield Problem.of(node, Rule.MIXED_TYPES, mixed)
        for gpu in gpus:
            if problem := _kernel_problem(index, node, gpu):
                yield problem


def _input_problems(index: GraphIndex) -> Iterator[Problem]:
    for value in index.model.graph.input:
        dtype = value.type.tensor_type.elem_type
        if value.type.HasField("tensor_type") and dtype not in _INPUT_TYPES:
            name = TensorProto.DataType.Name(dtype)
            detail = f"TensorRT engines take no {name} inputs"
            yield Problem(f"input {value.name}", Rule.INPUT_TYPE, detail)


def _rounding_problems(index: GraphIndex, node: onnx.NodeProto) -> Iterator[Problem]:
    """Yield the problems of a QuantizeLinear or DequantizeLinear node."""
    has_zero = bool(len(node.input) > 2 and node.input[2])
    zero = index.array(node.input[2]) if has_zero else None
    if problem := _integer_type_problem(node, _integer_type(index, node), has_zero=has_zero):
        yield problem
    if zero is not None and zero.any():
        first = zero.reshape(-1)[zero.reshape(-1).nonzero()][0]
        yield Problem.of(node, Rule.ZERO_POINT, f"a zero-point of {first}; it takes 0 alone")
    scale = index.array(node.input[1])
    if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
        yield Problem.of(node, Rule.SCALE, "a scale that is not above 0")


def _integer_type(index: GraphIndex, node: onnx.NodeProto) -> int | None:
    """Return the type of a node's integers, from its stored weight or its zero-point, if known."""
    tensor = index.constants.get(node.input[0])
    if tensor is None or node.op_type != "DequantizeLinear":
        has_zero = len(node.input) > 2 and node.input[2]
        tensor = index.constants.get(node.input[2]) if has_zero else None
    return None if tensor is None else int(tensor.data_type)


def _integer_type_problem(
    node: onnx.NodeProto, dtype: int | None, *, has_zero: bool
) -> Problem | None:
    if dtype in _UNSUPPORTED:
        detail = f"{_UNSUPPORTED[dtype]} values; it takes INT8, INT4 and FP8 (E4M3FN)"
        return Problem.of(node, Rule.INTEGER_TYPE, detail)
    if dtype in _UNSIGNED:
        detail = f"{_UNSIGNED[dtype]} integers; it takes signed ones, and may read these as such"
        return Problem.of(node, Rule.UNSIGNED_INTEGERS, detail)
    if dtype == TensorProto.INT32:
        return Problem.of(node, Rule.INTEGER_BIAS, "an INT32 bias; leave biases in float")
    if dtype is None and not has_zero and node.op_type == "QuantizeLinear":
        detail = "no zero-point, which makes it UINT8; give a zero-point of INT8"
        return Problem.of(node, Rule.UNSIGNED_INTEGERS, detail)
    return None


def _integer_constant(index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """Return the name of the first INT8 constant that a node reads, if any."""
    if node.op_type in _ROUNDING:
        return None
    for name in node.input:
        tensor = index.constants.get(name)
        if tensor is not None and tensor.data_type == TensorProto.INT8:
            return str(name)
    return None


def _mixed_types(index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """Return a message if operands that share one type in ONNX have different float types."""
    try:
        schema = onnx.defs.get_schema(node.op_type, index.opset(node.domain), node.domain)
    except onnx.defs.SchemaError:  # an operator outside ONNX
        return None
    groups: dict[str, dict[str, str]] = {}
    for position, name in enumerate(node.input):
        dtype = _FLOATS.get(index.types.get(name, TensorProto.UNDEFINED))
        if dtype is not None and schema.inputs:
            parameter = schema.inputs[min(position, len(schema.inputs) - 1)]
            groups.setdefault(parameter.type_str, {}).setdefault(dtype, name)
    for types in groups.values():
        if len(types) > 1:
            operands = " and ".join(f"{dtype} ({name})" for dtype, name in types.items())
            return f"mixes {operands}; cast one"
    return None


def _kernel_problem(index: GraphIndex, node: onnx.NodeProto, gpu: str) -> Problem | None:
    """Return a problem if a GPU has no kernels for the types of a node."""
    capability = int(gpu.removeprefix("sm"))
    types = {index.types.get(name) for name in (*node.input, *node.output)}
    rounds = node.op_type in _ROUNDING
    if rounds and TensorProto.FLOAT8E4M3FN in types and capability < _FIRST_WITH_FP8:
        return Problem.of(node, Rule.NO_KERNEL, f"FP8 has no kernels on {gpu}")
    if capability > _TURING:
        return None
    if rounds and TensorProto.INT4 in types:
        return Problem.of(node, Rule.NO_KERNEL, f"INT4 has no kernels on {gpu}")
    if node.op_type in _PRODUCTS and TensorProto.FLOAT in types:
        return Problem.of(node, Rule.FP32_PRODUCTS, f"FP32 products have no kernels on {gpu}")
    if TensorProto.BFLOAT16 in types:
        return Problem.of(node, Rule.NO_KERNEL, f"BF16 has no kernels on {gpu}")
    return None
