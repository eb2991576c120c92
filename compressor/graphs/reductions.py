"""Write composite reductions as elementwise operators around ReduceSum and ReduceMax."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import tape

COMPOSITE = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"}
)


def write_out_reductions(model: ir.Model) -> int:
    """Replace composite reductions whose axes are an input, in place; return their number.

    Since opset 18 the axes are an input, which some converters do not read.
    """
    nodes = [
        node
        for node in model.graph.all_nodes()
        if node.op_type in COMPOSITE and not node.domain and len(node.inputs) > 1 and node.inputs[1]
    ]
    for node in nodes:
        _write_out(node)
    return len(nodes)


def _write_out(node: ir.Node) -> None:
    nodes = tape.Tape()
    result = _decomposed(node, nodes)
    graph, old = node.graph, node.outputs[0]
    assert graph is not None  # noqa: S101 - a node of a graph
    for number, value in enumerate(each.outputs[0] for each in nodes.nodes):
        value.name, value.type = f"{old.name}.part{number}", old.type
    result.type, result.shape = old.type, old.shape
    graph.insert_before(node, list(nodes.nodes))
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    name = old.name
    graph.remove(node, safe=True)
    result.name = name


def _decomposed(node: ir.Node, nodes: tape.Tape) -> ir.Value:
    """Return the result of a reduction, written out on the tape."""
    x, axes = node.inputs[0], node.inputs[1]
    keeps_axes = node.attributes.get_int("keepdims", 1)

    def reduce(operator: str, value: ir.Value | None, keepdims: int = keeps_axes) -> ir.Value:
        return nodes.op(operator, [value, axes], {"keepdims": keepdims})

    if node.op_type == "ReduceL1":
        return reduce("ReduceSum", nodes.op("Abs", [x]))
    if node.op_type == "ReduceL2":
        return nodes.op("Sqrt", [reduce("ReduceSum", nodes.op("Mul", [x, x]))])
    if node.op_type == "ReduceSumSquare":
        return reduce("ReduceSum", nodes.op("Mul", [x, x]))
    if node.op_type == "ReduceLogSum":
        return nodes.op("Log", [reduce("ReduceSum", x)])
    # Less the largest value, so that no exponential overflows.
    difference = nodes.op("Sub", [x, reduce("ReduceMax", x, 1)])
    total = nodes.op("Log", [reduce("ReduceSum", nodes.op("Exp", [difference]))])
    return nodes.op("Add", [total, reduce("ReduceMax", x)])
