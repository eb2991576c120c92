"""Hard sigmoids of integers: the same integers on another grid, so that nothing is computed.

A gate α·x + β, clipped to 0 and 1, of x = (q − z)·s with z·s = β/α is α·s·q: the grid of x ends
where the gate is 0, and Clip limits q where it is 1. ONNX Runtime then multiplies x by its gate on
integers, in place of dequantizing x, computing the gate and the product, and rounding it again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import (
    DEQUANTIZE,
    QUANTIZE,
    add_initializer,
    attribute,
    constant_array,
    describe_output,
    producer_of,
)

_HIGHEST = 255
_TOLERANCE = 0.01
"""Part of a step by which the end of a grid may miss the value at which a gate is 0."""


def gate_ends(node: ir.Node) -> tuple[float, float] | None:
    """Return the values at which a HardSigmoid reaches 0 and 1; None if it does not rise."""
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return (-offset / slope, (1 - offset) / slope) if slope > 0 else None


def gate_start(value: ir.Value) -> float | None:
    """Return the largest value below 0 at which all hard sigmoids that read a value are 0."""
    ends = [gate_ends(node) for node, _ in value.uses() if node.op_type == "HardSigmoid"]
    starts = {None if end is None else end[0] for end in ends}
    start = starts.pop() if len(starts) == 1 else None
    return start if start is not None and start < 0 else None


def store_integer_gates(model: ir.Model) -> int:
    """Replace hard sigmoids of rounded values by dequantization, in place; return their number."""
    count = 0
    for node in list(model.graph):
        gate = _gate(model, node) if node.op_type == "HardSigmoid" and not node.domain else None
        if gate is not None:
            output = node.outputs[0]
            output.replace_all_uses_with(gate)
            model.graph.remove(node, safe=True)
            count += 1
    return count


def _gate(model: ir.Model, node: ir.Node) -> ir.Value | None:
    """Return the dequantized gate, which is added to the graph; None where the grids do not fit."""
    ends = gate_ends(node)
    dequantize = producer_of(node.inputs[0], DEQUANTIZE)
    if ends is None or dequantize is None or node.outputs[0].is_graph_output():
        return None
    integers = dequantize.inputs[0]
    scale, zero = (constant_array(value) for value in dequantize.inputs[1:3])
    if integers is None or producer_of(integers, QUANTIZE) is None:
        return None
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
        return None
    start, end = ends
    if abs(int(zero) * float(scale) + start) > _TOLERANCE * float(scale):
        return None
    name = str(node.outputs[0].name)
    step = np.array(float(scale) / (end - start), np.float32)
    if (highest := round(1 / float(step))) < _HIGHEST:
        top = add_initializer(model.graph, f"{name}.highest", np.array(highest, np.uint8))
        clip = ir.node("Clip", [integers, None, top], name=f"{name}.clip")
        clipped = describe_output(clip, f"{name}.clipped", ir.DataType.UINT8, integers.shape)
        model.graph.insert_before(node, clip)
        integers = clipped
    operands = [
        integers,
        add_initializer(model.graph, f"{name}.scale", step),
        add_initializer(model.graph, f"{name}.zero", np.array(0, np.uint8)),
    ]
    result = ir.node(DEQUANTIZE, operands, name=f"{name}.dequantize")
    model.graph.insert_before(node, result)
    return describe_output(result, f"{name}.gate", ir.DataType.FLOAT, node.outputs[0].shape)
