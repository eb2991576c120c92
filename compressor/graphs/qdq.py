"""Integer layers as QuantizeLinear and DequantizeLinear around float operators (the QDQ format).

``store_integer_weights`` writes weights as INT8 and gives each operator the form for which ONNX
Runtime and TensorRT have integer kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass
from onnxscript import opset18
from torch import nn

from compressor.errors import PassError
from compressor.graphs.names import INTEGER_SUFFIX, TRANSPOSED_SUFFIX
from compressor.graphs.values import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    add_initializer,
    attribute,
    constant_array,
    is_quantized_weight,
    producer_of,
    remove_unused,
)
from compressor.models.quantized.fake_quantization import FakeQuantizer
from compressor.models.quantized.quantization import Target

T = TypeVar("T")
_operators: Any = opset18
_WEIGHTS_AND_ZERO_POINTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    DEQUANTIZE: ((0, 2),),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}
"""Operator to the positions of each of its weights and of the zero-point among its inputs."""


def rounding_translations(target: Target) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of simulated rounding for torch's ONNX exporter.

    Weights are INT8, and for TensorRT activations too. For ONNX Runtime all activations are UINT8,
    which its kernels multiply fastest; it leaves a convolution in float that reads one type and
    writes the other.
    """

    def rounded(x: Any, scale: Any, axis: int, lowest: int, highest: int) -> Any:  # noqa: ARG001
        if axis >= 0 or target == "tensorrt":
            zeros = np.zeros(() if axis < 0 else tuple(scale.shape), np.int8)
        else:
            zeros = np.array(-lowest, np.uint8)
        zero = _operators.Constant(value=ir.tensor(zeros))
        return _operators.DequantizeLinear(
            _operators.QuantizeLinear(x, scale, zero, axis=max(axis, 0)),
            scale,
            zero,
            axis=max(axis, 0),
        )

    return {torch.ops.autoglm_compress.fake_quantize.default: rounded}


def freeze_scales(module: nn.Module) -> None:
    """Make every quantization scale of a module a constant, in place."""
    for submodule in module.modules():
        if isinstance(submodule, FakeQuantizer):
            submodule.fix()


def store_integer_weights(model: ir.Model, target: Target, bits: int) -> None:
    """Store weights as integers, and rewrite operators into forms with integer kernels, in place.

    - QuantizeLinear of rows of a table becomes one of the table: integers are looked up.
    - QuantizeLinear of a weight is computed here: the file holds the integers.
    - Transpose after DequantizeLinear of a weight is computed too.
    - Gemm becomes MatMul and Add: ONNX Runtime has an integer kernel with a float result for MatMul
      alone.
    - Pad with zeros before the rounding of a convolution's input becomes the convolution's own
      padding: the values are the same, since every grid holds 0 exactly.

    Args:
        model: a graph that was traced with ``rounding_translations``.
        target: the runtime that is to compute.
        bits: bits of the weights' integers, at most 8.
    """
    for node in list(model.graph):
        if node.op_type == QUANTIZE:
            _round_before_lookup(model, node)
    for node in list(model.graph):
        if node.op_type == QUANTIZE:
            _store_integers(model, node, bits)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _split_gemm(model, node, target)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _transpose_integers(model, node)
    for node in list(model.graph):
        if node.op_type == "Conv":
            _absorb_padding(node)
    remove_unused(model.graph)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)
    _separate_zero_points(model)


def _require(value: T | None) -> T:
    """Return what the matched pattern guarantees to exist."""
    if value is None:
        raise PassError("an ONNX node lacks an input that its pattern requires")
    return value


def _round_before_lookup(model: ir.Model, node: ir.Node) -> None:
    """Exchange Gather of whole rows of a constant and QuantizeLinear by column."""
    gather = producer_of(node.inputs[0], "Gather")
    scale = constant_array(node.inputs[1])
    if gather is None or scale is None or not scale.ndim or attribute(gather, "axis", 0) != 0:
        return
    table = _require(gather.inputs[0])
    values = constant_array(table)
    if values is None or values.ndim != 2 or values.shape[1] != len(scale):
        return
    rounded = ir.node(QUANTIZE, [table, *node.inputs[1:]], {"axis": 1})
    rows = ir.node("Gather", [rounded.outputs[0], gather.inputs[1]], {"axis": 0})
    rounded.outputs[0].name = f"{table.name}.rounded"
    rows.outputs[0].name = f"{node.outputs[0].name}.rows"
    rows.outputs[0].dtype, rows.outputs[0].shape = ir.DataType.INT8, gather.outputs[0].shape
    model.graph.insert_before(node, [rounded, rows])
    node.outputs[0].replace_all_uses_with(rows.outputs[0])
    model.graph.remove(node, safe=True)


def _store_integers(model: ir.Model, node: ir.Node, bits: int) -> None:
    """Replace QuantizeLinear of a constant by its result: rounded half to even, then clipped."""
    operands = (*node.inputs, None, None)[:3]
    weight, scale, zero = (constant_array(value) for value in operands)
    if weight is None or scale is None or zero is None:
        return
    axis = attribute(node, "axis", 1)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)] if scale.ndim else []
    rounded = np.rint(weight / scale.reshape(shape))
    if zero.dtype == np.uint8:  # an activation that is constant, such as a table of positions
        integers = np.clip(rounded + zero.reshape(shape), 0, 255).astype(np.uint8)
    else:
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        integers = np.clip(rounded, low, high).astype(np.int8)
    # A layer that is called twice has one weight, and its integers are stored once.
    name = f"{_require(node.inputs[0]).name}{INTEGER_SUFFIX}"
    stored = add_initializer(model.graph, name, integers)
    node.outputs[0].replace_all_uses_with(stored)
    model.graph.remove(node, safe=True)


def _dequantized_weight(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear of stored integers that computes a value, else None."""
    node = producer_of(value, DEQUANTIZE)
    return node if node is not None and is_quantized_weight(node) else None


def _separate_zero_points(model: ir.Model) -> None:
    """Give each INT8 weight a zero-point of its own.

    With ``session.x64quantprecision=1`` ONNX Runtime rewrites the zero-point of each weight in
    place, and refuses a graph in which two weights share one.
    """
    for node in list(model.graph):
        for weight, position in _WEIGHTS_AND_ZERO_POINTS.get(node.op_type, ()):
            integers = node.inputs[weight]
            zero = node.inputs[position] if len(node.inputs) > position else None
            values = constant_array(zero)
            if zero is None or values is None or values.dtype != np.int8 or len(zero.uses()) == 1:
                continue
            if integers is not None and constant_array(integers) is not None:
                own = add_initializer(model.graph, f"{integers.name}.zero_point", values)
                node.replace_input_with(position, own)


def _stored_integers(dequantize: ir.Node) -> Array:
    return _require(constant_array(dequantize.inputs[0]))


def _add_transposed(
    model: ir.Model, dequantize: ir.Node, order: list[int], before: ir.Node
) -> ir.Value:
    """Add the same weight with its axes in another order, and return it."""
    name = f"{_require(dequantize.inputs[0]).name}{TRANSPOSED_SUFFIX}"
    integers = np.ascontiguousarray(_stored_integers(dequantize).transpose(order))
    stored = add_initializer(model.graph, name, integers)
    axis = order.index(attribute(dequantize, "axis", 1))
    transposed = ir.node(DEQUANTIZE, [stored, *dequantize.inputs[1:]], {"axis": axis})
    transposed.outputs[0].name = f"{before.outputs[0].name}.weight"
    transposed.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(before, transposed)
    return transposed.outputs[0]


def _transpose_integers(model: ir.Model, node: ir.Node) -> None:
    """Replace Transpose of a dequantized weight by transposed integers."""
    dequantize = _dequantized_weight(node.inputs[0])
    if dequantize is None:
        return
    rank = _stored_integers(dequantize).ndim
    order = list(attribute(node, "perm", range(rank)[::-1]))
    node.outputs[0].replace_all_uses_with(_add_transposed(model, dequantize, order, node))
    model.graph.remove(node, safe=True)


def _split_gemm(model: ir.Model, node: ir.Node, target: Target) -> None:
    """Replace Gemm with a weight of integers by MatMul and Add."""
    dequantize = _dequantized_weight(node.inputs[1])
    scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if dequantize is None or scaled or attribute(node, "transA", 0):
        return
    weight = node.inputs[1]
    if attribute(node, "transB", 0):
        weight = _add_transposed(model, dequantize, [1, 0], node)
    output = node.outputs[0]
    product = ir.node("MatMul", [node.inputs[0], weight])
    product.outputs[0].name = f"{output.name}.product"
    product.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(node, product)
    result = product.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        total = _bias_node(model, result, bias, target)
        model.graph.insert_before(node, total)
        result = total.outputs[0]
    if output.dtype is not None:
        result.dtype = output.dtype
    result.shape = output.shape
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    result.name = name


def _bias_node(model: ir.Model, x: ir.Value, bias: ir.Value, target: Target) -> ir.Node:
    """Return x + bias; for ONNX Runtime as x - (-bias), since it fuses MatMul and Add to Gemm."""
    values = constant_array(bias)
    if target != "onnxruntime" or values is None:
        return ir.node("Add", [x, bias])
    negative = add_initializer(model.graph, f"{bias.name}.negative", -values)
    return ir.node("Sub", [x, negative])


def _absorb_padding(node: ir.Node) -> None:
    """Move the padding of Pad, QuantizeLinear, DequantizeLinear, Conv into the Conv."""
    dequantize = producer_of(node.inputs[0], DEQUANTIZE)
    quantize = producer_of(dequantize.inputs[0], QUANTIZE) if dequantize is not None else None
    pad = producer_of(quantize.inputs[0], "Pad") if quantize is not None else None
    if dequantize is None or quantize is None or pad is None:
        return
    chain = (pad, quantize, dequantize)
    amounts = _zero_padding(pad)
    if amounts is None or any(len(link.outputs[0].uses()) != 1 for link in chain):
        return
    automatic = attribute(node, "auto_pad", "NOTSET")
    if automatic not in {"NOTSET", "VALID"}:  # SAME_*: depends on the size that is padded
        return
    rank = len(amounts) // 2
    before, after = amounts[:rank], amounts[rank:]
    if before[:2].any() or after[:2].any() or len(pad.inputs) > 3:
        return
    none = [0] * 2 * (rank - 2)
    own = np.asarray(none if automatic == "VALID" else attribute(node, "pads", none))
    node.attributes.pop("auto_pad", None)  # ONNX allows one of both
    pads = (own + np.concatenate([before[2:], after[2:]])).tolist()
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    quantize.replace_input_with(0, pad.inputs[0])
    for link in (quantize, dequantize):
        link.outputs[0].shape = _require(pad.inputs[0]).shape


def _zero_padding(pad: ir.Node) -> Array | None:
    """Return the constant amounts of a Pad that adds zeros, else None."""
    amounts = constant_array(pad.inputs[1])
    value = constant_array(pad.inputs[2]) if len(pad.inputs) > 2 else np.zeros(())
    if attribute(pad, "mode", "constant") != "constant" or amounts is None or value is None:
        return None
    return None if value.any() or (amounts < 0).any() else amounts
