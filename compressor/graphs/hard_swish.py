"""Write hard swish as x · HardSigmoid(x): its operator, and x · clip(x + 3, 0, 6) / 6.

ONNX Runtime computes it in 0.57 of the time of the latter (one thread, 0.5 million values).
"""

from __future__ import annotations

import onnx_ir as ir

from compressor.graphs.values import constant_array

_SLOPE = 1 / 6
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Types in which ONNX Runtime computes HardSigmoid."""


def restore_hard_swish(model: ir.Model) -> int:
    """Replace every such group of nodes in the main graph, in place, and return their number."""
    count = 0
    for node in list(model.graph):
        group = _match(node)
        if group is None:
            continue
        _replace(model, *group)
        count += 1
    return count


def split_hard_swish(model: ir.Model) -> None:
    """Replace the operator HardSwish by HardSigmoid and Mul in the main graph, in place.

    ONNX Runtime executes it as these two in any case, and multiplies integers where they are apart
    (``integer_gates``).
    """
    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "HardSwish" and not node.domain else None
        if x is None or x.dtype not in _TYPES:
            continue
        _replace(model, x, node)


def _replace(model: ir.Model, x: ir.Value, last: ir.Node) -> None:
    """Replace the node that computes hard swish of x by HardSigmoid and Mul."""
    output = last.outputs[0]
    sigmoid = ir.node(
        "HardSigmoid", [x], {"alpha": _SLOPE, "beta": 0.5}, name=f"{last.name}.hard_sigmoid"
    )
    gate = sigmoid.outputs[0]
    gate.name, gate.type, gate.shape = f"{output.name}.gate", output.type, output.shape
    product = ir.node("Mul", [x, gate], name=last.name)
    model.graph.insert_before(last, [sigmoid, product])
    result = product.outputs[0]
    result.type, result.shape = output.type, output.shape
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    name = output.name
    model.graph.remove(last, safe=True)
    result.name = name


def _match(add: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """Return x and the last node of a group that begins with x + 3."""
    x = _summand(add)
    clip = _only_reader(add, "Clip") if x is not None else None
    if x is None or clip is None or not _clips_to_six(clip):
        return None
    first = _only_reader(clip, "Mul", "Div")
    last = None if first is None else _only_reader(first, "Mul", "Div")
    if first is None or last is None or last.outputs[0].dtype not in _TYPES:
        return None
    if _is_sixth(first, x) and last.op_type == "Mul" and x in last.inputs:
        return x, last
    if first.op_type == "Mul" and x in first.inputs and _is_sixth(last, x):
        return x, last
    return None


def _clips_to_six(clip: ir.Node) -> bool:
    if len(clip.inputs) < 3:
        low, high = clip.attributes.get_float("min", -1.0), clip.attributes.get_float("max", 0.0)
        return (low, high) == (0.0, 6.0)
    return _constant(clip.inputs[1]) == 0.0 and _constant(clip.inputs[2]) == 6.0


def _is_sixth(node: ir.Node, x: ir.Value) -> bool:
    """Return True if a node divides what has the shape of x by 6, as a division or a product."""
    if node.op_type == "Div":
        return _constant(node.inputs[1], x) == 6.0
    factors = [_constant(value, x) for value in node.inputs]
    return any(factor is not None and abs(factor - _SLOPE) < 1e-6 for factor in factors)


def _summand(node: ir.Node) -> ir.Value | None:
    """Return x where a node computes x + 3."""
    if node.op_type != "Add" or node.domain:
        return None
    for index in (0, 1):
        x = node.inputs[index]
        if x is not None and _constant(node.inputs[1 - index], x) == 3.0:
            return x
    return None


def _only_reader(node: ir.Node, *operators: str) -> ir.Node | None:
    output = node.outputs[0]
    readers = {use.node for use in output.uses()}
    if len(readers) != 1 or output.is_graph_output():
        return None
    [reader] = readers
    is_match = reader.op_type in operators and not reader.domain and reader.graph is node.graph
    return reader if is_match else None


def _constant(value: ir.Value | None, x: ir.Value | None = None) -> float | None:
    """Return a constant of one element; None if it adds axes to x, or may add some."""
    array = constant_array(value)
    if array is None or array.size != 1:
        return None
    rank = 0 if x is None or x.shape is None else len(x.shape)
    return float(array.reshape(-1)[0]) if x is None or array.ndim <= rank else None
