"""Insert QuantizeLinear and DequantizeLinear around values and weights of a float graph.

``qdq.store_integer_weights`` then stores the integers and gives operators their integer forms.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from compressor.graphs.integer_regions import Product, RoundedValue
from compressor.graphs.values import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    add_initializer,
    describe_output,
    insert_first,
)

INTEGERS_OPSET = 13
"""The first opset whose QuantizeLinear has a scale for each output."""


def round_value(model: ir.Model, rounded: RoundedValue, scale: Array, zero: Array) -> None:
    """Let the readers of a value read it rounded, in place.

    Args:
        model: the graph.
        rounded: the value and its readers.
        scale: float32 [].
        zero: the zero-point, uint8 or int8 [].
    """
    value = rounded.value
    operands = _constants(model, str(value.name), scale, zero)
    quantize, dequantize = _rounding(value, operands, {})
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
    weight = product.weight
    operands = _constants(
        model, str(weight.name), scales_O, np.zeros(scales_O.shape, np.int8), f".axis{product.axis}"
    )
    quantize, dequantize = _rounding(weight, operands, {"axis": product.axis})
    insert_first(model.graph, dequantize)
    model.graph.insert_before(dequantize, quantize)
    product.node.replace_input_with(1, dequantize.outputs[0])


def _constants(
    model: ir.Model, name: str, scale: Array, zero: Array, suffix: str = ""
) -> list[ir.Value]:
    return [
        add_initializer(model.graph, f"{name}{suffix}.scale", scale.astype(np.float32)),
        add_initializer(model.graph, f"{name}{suffix}.zero", zero),
    ]


def _rounding(
    value: ir.Value, operands: Iterable[ir.Value], attributes: dict[str, int]
) -> tuple[ir.Node, ir.Node]:
    scale, zero = operands
    quantize = ir.node(QUANTIZE, [value, scale, zero], attributes, name=f"{value.name}.quantize")
    integers = describe_output(
        quantize, f"{value.name}.quantized", zero.dtype or ir.DataType.INT8, value.shape
    )
    dequantize = ir.node(
        DEQUANTIZE, [integers, scale, zero], attributes, name=f"{value.name}.dequantize"
    )
    describe_output(dequantize, f"{value.name}.rounded", ir.DataType.FLOAT, value.shape)
    return quantize, dequantize


def _exchange_outputs(model: ir.Model, value: ir.Value, result: ir.Value) -> None:
    """Make the rounded value the output of the graph, under the name of the value."""
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = result
    value.name, result.name = f"{value.name}.unrounded", value.name
