"""Transposed convolutions with INT8 weights, which are dequantized when the graph runs.

No runtime has an integer kernel for them on a CPU: only the file gets smaller.

Shapes: I input channels, O output channels of a group, X positions of the kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.recurrent import WeightScales
from compressor.graphs.values import (
    DEQUANTIZE,
    add_initializer,
    constant_array,
    describe_output,
    unique_name,
)

_AXIS = 1
"""Axis of the output channels."""
_HIGHEST = 127


def float_transposed_convolutions(model: ir.Model) -> dict[str, ir.Node]:
    """Return the layers whose weight can be INT8, by their names or those of the results."""
    return {
        node.name or str(node.outputs[0].name): node
        for node in model.graph
        if node.op_type == "ConvTranspose" and not node.domain and _has_float_weight(node)
    }


def store_integer_kernel(model: ir.Model, node: ir.Node, scales: WeightScales) -> None:
    """Store the weight of a transposed convolution as INT8 with a scale for each output, in place.

    Args:
        model: the graph.
        node: a layer of ``float_transposed_convolutions``.
        scales: the choice of scales.
    """
    weight = node.inputs[1]
    weight_IOX = constant_array(weight)
    assert weight is not None and weight_IOX is not None  # noqa: S101 - it is constant
    scales_O = scales(np.moveaxis(weight_IOX, _AXIS, 0)).astype(np.float32)
    shape = [-1 if axis == _AXIS else 1 for axis in range(weight_IOX.ndim)]
    integers_IOX = np.clip(np.rint(weight_IOX / scales_O.reshape(shape)), -_HIGHEST, _HIGHEST)
    operands = [
        add_initializer(model.graph, f"{weight.name}.integers", integers_IOX.astype(np.int8)),
        add_initializer(model.graph, f"{weight.name}.scales", scales_O),
        # With `session.x64quantprecision=1` ONNX Runtime rewrites it for unsigned integers.
        add_initializer(model.graph, f"{weight.name}.zeros", np.zeros(scales_O.shape, np.int8)),
    ]
    dequantize = ir.node(DEQUANTIZE, operands, {"axis": _AXIS}, name=f"{weight.name}.dequantize")
    name = unique_name(model.graph, f"{weight.name}.rounded")
    rounded = describe_output(dequantize, name, ir.DataType.FLOAT, weight.shape)
    model.graph.insert_before(node, dequantize)
    node.replace_input_with(1, rounded)


def _has_float_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    is_float = weight is not None and weight.dtype == ir.DataType.FLOAT
    return is_float and constant_array(weight) is not None
