"""What TensorRT refuses of a graph, or takes for something else without a word.

Every rule was tried with tensorrt-rtx 1.7 and is held against it by tests: no zero-points but 0, no unsigned integers, no INT32
biases, none of ONNX Runtime's own operators, no operands of different float types, and no types that a GPU has no kernels for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from compressor.graphs.view import View, named

_ROUNDING = {"QuantizeLinear", "DequantizeLinear"}
_UNSIGNED: dict[int, str] = {
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT4: "UINT4",
    TensorProto.UINT16: "UINT16",
}
_UNKNOWN: dict[int, str] = {
    TensorProto.INT16: "INT16",
    TensorProto.FLOAT8E5M2: "FLOAT8E5M2",
    TensorProto.FLOAT8E4M3FNUZ: "FLOAT8E4M3FNUZ",
    TensorProto.FLOAT8E5M2FNUZ: "FLOAT8E5M2FNUZ",
}
_REFUSED = {"DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"}
_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
}
_FED = {
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


def complaints_of_tensorrt(view: View, gpus: Sequence[str]) -> Iterator[str]:
    """One line for each node that TensorRT refuses, or that it cannot compute on one of the GPUs.

    Args:
        view: the graph.
        gpus: compute capabilities such as ``sm86``; none to leave out what depends on them.
    """
    for value in view.model.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.type.HasField("tensor_type") and kind not in _FED:
            yield f"input {value.name}: {TensorProto.DataType.Name(kind)} is no type that an engine is fed"
    for node in view.nodes:
        if node.domain not in {"", "ai.onnx"} and node.op_type not in {"Gelu", *_ROUNDING}:
            yield f"{named(node)}: an operator of {node.domain}"
        elif node.op_type in _REFUSED:
            yield f"{named(node)}: TensorRT computes QuantizeLinear and DequantizeLinear around float operators only"
        elif node.op_type in _ROUNDING and len(node.input) > 1:
            yield from (
                f"{named(node)}: {complaint}" for complaint in _rounding_complaints(view, node)
            )
        elif mixed := _mixed(view, node):
            yield f"{named(node)}: {mixed}"
        for gpu in gpus:
            if lacking := _lacking(view, node, int(gpu.removeprefix("sm"))):
                yield f"{named(node)}: {lacking} on {gpu}"


def _rounding_complaints(view: View, node: onnx.NodeProto) -> Iterator[str]:
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
    if kind in _UNKNOWN:
        yield f"{_UNKNOWN[kind]} values; it takes INT8, INT4 and FP8 (E4M3FN)"
    elif kind in _UNSIGNED:
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


def _mixed(view: View, node: onnx.NodeProto) -> str | None:
    """Operands of different float types where the operator has one type for them."""
    try:
        schema = onnx.defs.get_schema(node.op_type, view.opset(node.domain), node.domain)
    except onnx.defs.SchemaError:  # not ONNX's own
        return None
    groups: dict[str, dict[str, str]] = {}
    for index, name in enumerate(node.input):
        kind = _FLOATS.get(view.types.get(name, TensorProto.UNDEFINED))
        if kind is not None and schema.inputs:
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            groups.setdefault(formal.type_str, {}).setdefault(kind, name)
    for found in groups.values():
        if len(found) > 1:
            return f"mixes {' and '.join(f'{kind} ({name})' for kind, name in found.items())}; cast one"
    return None


def _lacking(view: View, node: onnx.NodeProto, capability: int) -> str | None:
    """What a GPU of this compute capability has no kernel for."""
    kinds = {view.types.get(name) for name in (*node.input, *node.output)}
    if (
        node.op_type in _ROUNDING
        and TensorProto.FLOAT8E4M3FN in kinds
        and capability < _FIRST_WITH_FP8
    ):
        return "FP8 has no kernels"
    if capability > _TURING:
        return None
    if node.op_type in _ROUNDING and TensorProto.INT4 in kinds:
        return "INT4 has no kernels"
    if node.op_type in _PRODUCTS and TensorProto.FLOAT in kinds:
        return "FP32 products have no kernels"
    return "BF16 has no kernels" if TensorProto.BFLOAT16 in kinds else None
