"""Operators in bfloat16, which ONNX Runtime has on few devices, computed in float32.

Some classes compute a part in bfloat16 whatever their weights are, such as Falcon's biases for
distances. Results are rounded to bfloat16 as torch rounds them.
"""

from __future__ import annotations

import onnx_ir as ir

_KEPT = frozenset({"Cast", "CastLike", "Constant", "Identity"})


def compute_bfloat16_in_float32(model: ir.Model) -> None:
    """Cast bfloat16 inputs of each node to float32, and its results back, in place."""
    for graph in (model.graph, *model.functions.values()):
        for node in list(graph):
            if node.op_type not in _KEPT:
                _compute_in_float32(node)


def _compute_in_float32(node: ir.Node) -> None:
    graph = node.graph
    assert graph is not None  # noqa: S101 - it was found in one
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.BFLOAT16:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
            cast = _cast(value, ir.DataType.BFLOAT16)
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            cast.replace_input_with(0, value)
            graph.insert_after(node, cast)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].shape, node.outputs[0].dtype = value.shape, dtype
    return node
