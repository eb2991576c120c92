"""Bias correction of the products of a graph (after Nagel et al. 2019, arXiv:1906.04721, 4.2).

Shapes: O outputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.graphs.integer_regions import Product
from compressor.graphs.values import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    add_initializer,
    constant_array,
    producer_of,
)
from compressor.runtimes.onnxruntime.observation import open_graph, run_graph
from passes.optimize_onnx.valid_positions import mask_of, valid_values

_AXES_ARE_INPUT = 18
"""The first opset whose ReduceMean takes its axes as an input."""


@dataclass(frozen=True, slots=True)
class _Bias:
    """The place of a product's bias."""

    node: ir.Node
    """The convolution itself, or the Add or Sub behind a matrix product."""
    index: int
    """Position of the bias among the node's inputs."""
    sign: int = 1
    """-1 if the bias is subtracted."""


def correct_biases(
    model: ir.Model, products: Sequence[Product], batches: Iterable[Batch], threads: int
) -> int:
    """Shift the bias of each product by the mean error that rounding gives its result, in place.

    In the rounded graph, each product is computed a second time with the operands that it reads
    before they are rounded. The mean difference by output is the error that this product adds;
    what earlier ones add, they are corrected for themselves. So one run over the samples is enough.

    Args:
        model: a graph whose products read rounded operands; weights are still floats.
        products: the products.
        batches: feeds of the graph's inputs.
        threads: threads of one operator.

    Returns:
        The number of products that were corrected: those with a bias, and convolutions.
    """
    biases = {product: bias for product in products if (bias := _find_bias(product)) is not None}
    if not biases:
        return 0
    batches = list(batches)
    is_masked = mask_of(batches[0]) is not None
    session = open_graph(_with_differences(model, list(biases), reduced=not is_masked), threads)
    names = [_difference(product) for product in biases]
    totals: dict[str, Array] = {}
    weights: dict[str, float] = {}
    for feeds in batches:
        for name, values in zip(names, run_graph(session, names, feeds), strict=True):
            total_O, weight = _sum_by_output(values, feeds)
            totals[name] = totals.get(name, 0) + total_O
            weights[name] = weights.get(name, 0) + weight
    for product, bias in biases.items():
        name = _difference(product)
        if weights[name]:
            _shift(model, product, bias, -totals[name] / weights[name])
    return len(biases)


def _sum_by_output(values: Array, feeds: Batch) -> tuple[Array, float]:
    """Return the weighted sum of differences by output, and the weight.

    Args:
        values: means [O] over all positions of a batch, or differences [B, T, O] of texts whose
            padding does not count.
        feeds: the batch.
    """
    if values.ndim == 1:
        samples = max((len(array) for array in feeds.values() if array.ndim), default=1)
        return values.astype(np.float64) * samples, samples
    valid_PO = valid_values(values, feeds)
    rows_PO = valid_PO.reshape(-1, valid_PO.shape[-1]).astype(np.float64)
    return rows_PO.sum(axis=0), len(rows_PO)


def _find_bias(product: Product) -> _Bias | None:
    node = product.node
    if node.op_type == "Conv":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        is_known = bias is None or constant_array(bias) is not None
        return _Bias(node, 2) if is_known else None
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or node.outputs[0].is_graph_output():
        return None
    [(reader, index)] = readers
    sign = {"Add": 1, "Sub": -1 if index == 0 else 0}.get(reader.op_type, 0)
    is_bias = sign and _is_bias(reader, 1 - index, product)
    return _Bias(reader, 1 - index, sign) if is_bias else None


def _is_bias(node: ir.Node, index: int, product: Product) -> bool:
    """Return True if an operand is a constant with one value for each output."""
    array = constant_array(node.inputs[index]) if len(node.inputs) > index else None
    return array is not None and array.shape == (_outputs(product),)


def _outputs(product: Product) -> int:
    weight = constant_array(_before_rounding(product.node.inputs[1]))
    assert weight is not None  # noqa: S101 - a product has a constant weight
    return int(weight.shape[product.axis])


def _before_rounding(value: ir.Value | None) -> ir.Value:
    """Return the value that QuantizeLinear reads, of one that DequantizeLinear computes."""
    dequantize = producer_of(value, DEQUANTIZE)
    quantize = producer_of(dequantize.inputs[0], QUANTIZE) if dequantize is not None else None
    source = quantize.inputs[0] if quantize is not None else value
    assert source is not None  # noqa: S101 - products have both operands
    return source


def _difference(product: Product) -> str:
    return f"{product.node.outputs[0].name}.difference"


def _with_differences(model: ir.Model, products: Sequence[Product], *, reduced: bool) -> ir.Model:
    """Return a copy whose outputs are the differences of products, or their means by output.

    Convolutions are always reduced: they have no padding of texts.
    """
    copy = model.clone()
    producers = {value.name: node for node in copy.graph for value in node.outputs}
    axes_are_input = copy.opset_imports.get("", 1) >= _AXES_ARE_INPUT
    copy.graph.outputs.clear()
    for product in products:
        node = producers[product.node.outputs[0].name]
        name = _difference(product)
        if reduced or node.op_type == "Conv":
            added = list(_difference_nodes(node, name, copy, axes_are_input))
        else:
            added = list(_plain_difference(node))
            added[-1].outputs[0].name = name
            added[-1].outputs[0].dtype = ir.DataType.FLOAT
        copy.graph.insert_after(node, added)
        copy.graph.outputs.append(added[-1].outputs[0])
    return copy


def _difference_nodes(
    node: ir.Node, name: str, model: ir.Model, axes_are_input: bool
) -> Iterator[ir.Node]:
    operands = [_before_rounding(node.inputs[0]), _before_rounding(node.inputs[1])]
    second, difference = _plain_difference(node)
    yield from (second, difference)
    result = difference.outputs[0]
    if node.op_type == "Conv":
        rank = len(constant_array(operands[1]).shape)  # type: ignore[union-attr]
        axes = [axis for axis in range(rank) if axis != 1]
    else:
        outputs = add_initializer(
            model.graph, f"{name}.shape", np.array([-1, _width(operands[1])], np.int64)
        )
        rows = ir.node("Reshape", [result, outputs])
        yield rows
        result, axes = rows.outputs[0], [0]
    if axes_are_input:
        constant = add_initializer(model.graph, f"{name}.axes", np.array(axes, np.int64))
        mean = ir.node("ReduceMean", [result, constant], {"keepdims": 0})
    else:
        mean = ir.node("ReduceMean", [result], {"keepdims": 0, "axes": axes})
    mean.outputs[0].name = name
    mean.outputs[0].dtype = ir.DataType.FLOAT
    yield mean


def _plain_difference(node: ir.Node) -> tuple[ir.Node, ir.Node]:
    """Return the product of unrounded operands, and its difference from the rounded one."""
    operands = [_before_rounding(node.inputs[0]), _before_rounding(node.inputs[1])]
    second = ir.Node("", node.op_type, [*operands, *node.inputs[2:]], node.attributes.values())
    return second, ir.node("Sub", [node.outputs[0], second.outputs[0]])


def _width(weight: ir.Value) -> int:
    array = constant_array(weight)
    assert array is not None  # noqa: S101 - a product has a constant weight
    return int(array.shape[1])


def _shift(model: ir.Model, product: Product, bias: _Bias, shift_O: Array) -> None:
    node = bias.node
    present = node.inputs[bias.index] if len(node.inputs) > bias.index else None
    array = constant_array(present)
    base = np.zeros(shift_O.shape) if array is None else array
    values = (base + bias.sign * shift_O).astype(np.float32)
    corrected = add_initializer(model.graph, f"{product.node.outputs[0].name}.bias", values)
    if len(node.inputs) <= bias.index:
        node.resize_inputs(bias.index + 1)
    node.replace_input_with(bias.index, corrected)
