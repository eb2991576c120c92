"""Clean and simplify ONNX graphs: strip the exporter's notes, fold constants, restore patterns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from compressor.graphs.files import PROTOBUF_LIMIT_BYTES
from compressor.graphs.saving import external_bytes

_SKIPPED_OPTIMIZATIONS = ["fuse_matmul_add_bias_into_gemm_batched"]
"""Turns MatMul and Add on a batch of matrices into a Gemm between two Reshape with computed sizes:
up to six operators for two."""
_LARGEST_GROWTH = 1.01
_LARGEST_GROWTH_BYTES = 4096
_LARGEST_CONSTANT_BYTES = 2**30
_SMALL_TENSOR_BYTES = 4096
"""Shapes and other values that decide sizes are smaller."""


@dataclass(frozen=True, slots=True)
class Simplification:
    """Result of ``simplify``."""

    model: ir.Model
    applied: bool
    """False if ``model`` is the graph as it was."""
    summary: str
    """One line: the change in nodes and bytes, or the reason why nothing was changed."""


def strip_metadata(model: ir.Model) -> None:
    """Remove what an exporter notes about its own run: stack traces, paths, node histories.

    The graph, changed in place, then depends on the model alone: equal models give equal bytes.
    """
    model.doc_string = None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            _strip_value(value)
    for value in model.graph.outputs:
        _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    if value.const_value is not None:
        value.const_value.doc_string = None
        value.const_value.metadata_props.clear()


def simplify(model: ir.Model) -> Simplification:
    """Simplify a graph with onnxsim, and keep it as it was where that fails or makes it larger.

    onnxsim duplicates tied weights in some graphs, hence the comparison of sizes.
    """
    weights = external_bytes(model)
    if weights > PROTOBUF_LIMIT_BYTES:
        return _unchanged(
            model, f"its weights ({weights / 1e9:.1f} GB) do not fit into one protobuf message"
        )
    import onnxsim

    proto = ir.to_proto(model)
    if largest := _largest_constant_bytes(proto):
        return _unchanged(model, f"it computes a constant of {largest / 1e9:,.1f} GB")
    try:
        simplified, sound = onnxsim.simplify(proto, skipped_optimizers=_SKIPPED_OPTIMIZATIONS)
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _unchanged(model, f"onnxsim cannot ({reason})")
    if not sound:
        return _unchanged(model, "onnxsim's result does not compute the same")
    before, after = proto.ByteSize(), simplified.ByteSize()
    if after > _LARGEST_GROWTH * before + _LARGEST_GROWTH_BYTES:
        return _unchanged(model, f"onnxsim's result is larger ({before:,} to {after:,} bytes)")
    nodes = f"{len(proto.graph.node)} to {len(simplified.graph.node)} nodes"
    return Simplification(
        ir.from_proto(simplified), True, f"onnxsim: {nodes}, {before:,} to {after:,} bytes"
    )


def _largest_constant_bytes(proto: onnx.ModelProto) -> int:
    """Return the bytes of the largest value that onnxsim would compute from constants alone.

    Only those beyond ``_LARGEST_CONSTANT_BYTES`` count; 0 if there is none. A Range of 2⁴⁰ numbers
    takes a few bytes in a file, and all memory when it is folded.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(_without_weights(proto), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # onnxsim reports it
        return 0
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in graph.node:
        if all(name in constants or not name for name in node.input):
            constants.update(node.output)
    sizes = [
        math.prod(size.dim_value for size in value.type.tensor_type.shape.dim)
        * onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
        for value in (*graph.value_info, *graph.output)
        if value.name in constants
        and value.type.tensor_type.elem_type
        and value.type.tensor_type.HasField("shape")
    ]
    return max((size for size in sizes if size > _LARGEST_CONSTANT_BYTES), default=0)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large initializers are inputs of the same type and shape."""
    graph = onnx.GraphProto(name=proto.graph.name, node=proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    inputs = {value.name for value in graph.input}
    for tensor in proto.graph.initializer:
        if tensor.ByteSize() <= _SMALL_TENSOR_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    return onnx.ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=graph,
    )


def _unchanged(model: ir.Model, reason: str) -> Simplification:
    return Simplification(model, False, f"not simplified: {reason}")


def replace_reciprocals(model: ir.Model) -> None:
    """Replace x · (1 / y) by x / y, in place.

    RMS norms then have the form that ONNX Runtime fuses into one operator.
    """
    for node in list(model.graph):
        for index, value in enumerate(node.inputs if node.op_type == "Mul" else ()):
            reciprocal = value.producer() if value is not None else None
            if reciprocal is None or reciprocal.op_type != "Reciprocal":
                continue
            quotient = ir.node("Div", [node.inputs[1 - index], reciprocal.inputs[0]])
            old, new = node.outputs[0], quotient.outputs[0]
            new.type, new.shape = old.type, old.shape
            model.graph.insert_before(node, quotient)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            new.name = old.name
            if not reciprocal.outputs[0].uses():
                model.graph.remove(reciprocal, safe=True)
            break
