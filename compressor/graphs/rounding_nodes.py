"""Insert QuantizeLinear and DequantizeLinear around values and weights of a float graph.

``qdq.store_integer_weights`` then stores the integers and gives operators their integer forms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.integer_regions import Product, RoundedValue
from compressor.graphs.values import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    add_initializer,
    attribute,
    describe_output,
    insert_first,
    unique_name,
)


def round_value(model: ir.Model, rounded: RoundedValue, scale: Array, zero: Array) -> None:
    """Let the readers of a value read it rounded, in place.

    Args:
        model: the graph.
        rounded: the value and its readers.
        scale: float32 [].
        zero: the zero-point, uint8 or int8 [].
    """
    value = rounded.value
    quantize, dequantize = _rounding(model, value, str(value.name), scale, zero, {})
    producer = value.producer()
    if producer is None:
        insert_first(model.graph, dequantize)
        model.graph.insert_before(dequantize, quantize)
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    result = dequantize.outputs[0]
    for node, index in rounded.readers:
        node.replace_input_with(index, result)
    if rounded.is_output:
        _exchange_outputs(model, value, result)


def round_weight(model: ir.Model, product: Product, scales_O: Array) -> None:
    """Let a product read its weight rounded, with a scale for each output, in place.

    Args:
        model: the graph.
        product: the product.
        scales_O: float32 [O].
    """
    weight, axis = product.weight, product.axis
    rounded = _rounded_weight(weight, axis)
    if rounded is None:
        zeros = np.zeros(scales_O.shape, np.int8)
        name = f"{weight.name}.axis{axis}"
        quantize, dequantize = _rounding(model, weight, name, scales_O, zeros, {"axis": axis})
        insert_first(model.graph, dequantize)
        model.graph.insert_before(dequantize, quantize)
        rounded = dequantize.outputs[0]
    product.node.replace_input_with(1, rounded)


def _rounded_weight(weight: ir.Value, axis: int) -> ir.Value | None:
    """Return the rounded weight if another product with the same weight reads it already."""
    for quantize, _ in weight.uses():
        if quantize.op_type == QUANTIZE and attribute(quantize, "axis", 1) == axis:
            [(dequantize, _)] = quantize.outputs[0].uses()
            return dequantize.outputs[0]
    return None


def _rounding(
    model: ir.Model,
    value: ir.Value,
    name: str,
    scale: Array,
    zero: Array,
    attributes: dict[str, int],
) -> tuple[ir.Node, ir.Node]:
    operands = [
        add_initializer(model.graph, f"{name}.scale", scale.astype(np.float32)),
        add_initializer(model.graph, f"{name}.zero", zero),
    ]
    quantize = ir.node(QUANTIZE, [value, *operands], attributes, name=f"{name}.quantize")
    dtype = operands[1].dtype or ir.DataType.INT8
    graph = model.graph
    integers = describe_output(
        quantize, unique_name(graph, f"{name}.quantized"), dtype, value.shape
    )
    dequantize = ir.node(DEQUANTIZE, [integers, *operands], attributes, name=f"{name}.dequantize")
    rounded = unique_name(graph, f"{name}.rounded")
    describe_output(dequantize, rounded, ir.DataType.FLOAT, value.shape)
    return quantize, dequantize


def _exchange_outputs(model: ir.Model, value: ir.Value, result: ir.Value) -> None:
    """Make the rounded value the output of the graph, under the name of the value."""
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = result
    value.name, result.name = f"{value.name}.unrounded", value.name
