"""Integer layers in ONNX: QuantizeLinear and DequantizeLinear around them, weights as INT8, laid out for what computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass
from onnxscript import ir, opset18
from torch import nn

from compressor.errors import PassError
from compressor.models.quantized.fake_quantization import Rounding
from compressor.models.quantized.quantization import Target

Array = np.ndarray[Any, Any]
T = TypeVar("T")
_operators: Any = opset18
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def translations(target: Target) -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the exporter makes of a rounding.

    Weights are INT8, and for TensorRT activations too. For ONNX Runtime all activations are UINT8, which its kernels multiply
    fastest: it leaves a convolution in float that reads one type and writes the other.
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


def fix_scales(module: nn.Module) -> None:
    """Make every scale a constant."""
    for one in module.modules():
        if isinstance(one, Rounding):
            one.fix()


def laid_out(model: ir.Model, target: Target, bits: int) -> None:
    """In place: weights as integers, and each operator in the form that integer kernels are found for.

    - QuantizeLinear of rows of a table becomes one of the table: integers are looked up.
    - QuantizeLinear of a weight is computed here: the file holds the integers.
    - Transpose after DequantizeLinear of a weight, too.
    - Gemm becomes MatMul and Add: ONNX Runtime has an integer kernel with a float result for MatMul alone.
    - Pad with zeros before the rounding of a convolution's input becomes the convolution's own padding: the same values, since
      every grid holds 0 exactly.
    """
    for node in list(model.graph):
        if node.op_type == _QUANTIZE:
            _round_before_lookup(model, node)
    for node in list(model.graph):
        if node.op_type == _QUANTIZE:
            _store_integers(model, node, bits)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _split(model, node, target)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _transpose_integers(model, node)
    for node in list(model.graph):
        if node.op_type == "Conv":
            _take_padding(node)
    _drop_unused(model)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)


def _constant(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _array(value: ir.Value | None) -> Array:
    """Of a value that is known to be a constant."""
    return _only(_only(value).const_value).numpy()


def _only(value: T | None) -> T:
    """What is known to be there."""
    if value is None:
        raise PassError("an ONNX node lacks an input that it was found by")
    return value


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _initializer(model: ir.Model, name: str, array: Array) -> ir.Value:
    """A constant; of a layer that is called twice, the one that is there."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    value = ir.Value(
        name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape)
    )
    value.dtype = ir.DataType.from_numpy(array.dtype)
    model.graph.register_initializer(value)
    return value


def _round_before_lookup(model: ir.Model, node: ir.Node) -> None:
    """Gather of whole rows of a constant and QuantizeLinear by column change places."""
    gather = _made_by(node.inputs[0], "Gather")
    scale = _constant(node.inputs[1])
    if gather is None or scale is None or not scale.ndim or _attribute(gather, "axis", 0) != 0:
        return
    table = gather.inputs[0]
    values = _constant(table)
    if values is None or values.ndim != 2 or values.shape[1] != len(scale):
        return
    rounded = ir.node(_QUANTIZE, [table, *node.inputs[1:]], {"axis": 1})
    looked_up = ir.node("Gather", [rounded.outputs[0], gather.inputs[1]], {"axis": 0})
    rounded.outputs[0].name, looked_up.outputs[0].name = (
        f"{_only(table).name}.rounded",
        f"{node.outputs[0].name}.rows",
    )
    looked_up.outputs[0].dtype, looked_up.outputs[0].shape = (
        ir.DataType.INT8,
        gather.outputs[0].shape,
    )
    model.graph.insert_before(node, [rounded, looked_up])
    node.outputs[0].replace_all_uses_with(looked_up.outputs[0])
    model.graph.remove(node, safe=True)


def _store_integers(model: ir.Model, node: ir.Node, bits: int) -> None:
    """The integers of a weight, as ONNX defines QuantizeLinear: rounded half to even, then clipped."""
    weight, scale, zero = (_constant(one) for one in (*node.inputs, None, None)[:3])
    if weight is None or scale is None or zero is None:
        return
    axis = _attribute(node, "axis", 1)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)] if scale.ndim else []
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    integers = np.clip(np.rint(weight / scale.reshape(shape)), low, high).astype(np.int8)
    stored = _initializer(model, f"{_only(node.inputs[0]).name}.integers", integers)
    node.outputs[0].replace_all_uses_with(stored)
    model.graph.remove(node, safe=True)


def _weight(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of stored integers that makes a value."""
    node = _made_by(value, _DEQUANTIZE)
    return node if node is not None and _constant(node.inputs[0]) is not None else None


def _transposed(model: ir.Model, dequantize: ir.Node, order: list[int], at: ir.Node) -> ir.Value:
    """The same weight with its axes in another order, made before node ``at``."""
    weight = _only(dequantize.inputs[0])
    name = f"{weight.name}.T"
    stored = _initializer(model, name, np.ascontiguousarray(_array(weight).transpose(order)))
    axis = order.index(_attribute(dequantize, "axis", 1))
    turned = ir.node(_DEQUANTIZE, [stored, *dequantize.inputs[1:]], {"axis": axis})
    turned.outputs[0].name = f"{at.outputs[0].name}.weight"
    turned.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(at, turned)
    return turned.outputs[0]


def _transpose_integers(model: ir.Model, node: ir.Node) -> None:
    dequantize = _weight(node.inputs[0])
    if dequantize is None:
        return
    rank = _array(dequantize.inputs[0]).ndim
    order = list(_attribute(node, "perm", range(rank)[::-1]))
    node.outputs[0].replace_all_uses_with(_transposed(model, dequantize, order, node))
    model.graph.remove(node, safe=True)


def _split(model: ir.Model, node: ir.Node, target: Target) -> None:
    """Gemm with a weight of integers into MatMul and Add."""
    dequantize = _weight(node.inputs[1])
    plain = all(
        _attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")
    ) and not _attribute(node, "transA", 0)
    if dequantize is None or not plain:
        return
    weight = node.inputs[1]
    if _attribute(node, "transB", 0):
        weight = _transposed(model, dequantize, [1, 0], node)
    out = node.outputs[0]
    product = ir.node("MatMul", [node.inputs[0], weight])
    product.outputs[0].name, product.outputs[0].dtype = f"{out.name}.product", ir.DataType.FLOAT
    model.graph.insert_before(node, product)
    result = product.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
        values = _constant(bias)
        if (
            target == "onnxruntime" and values is not None
        ):  # it would make a Gemm of MatMul and Add again
            total = ir.node("Sub", [result, _initializer(model, f"{bias.name}.negative", -values)])
        else:
            total = ir.node("Add", [result, bias])
        model.graph.insert_before(node, total)
        result = total.outputs[0]
    if out.dtype is not None:
        result.dtype = out.dtype
    result.shape = out.shape
    name = out.name
    out.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    result.name = name


def _take_padding(node: ir.Node) -> None:
    """Pad, QuantizeLinear, DequantizeLinear, Conv: the padding of the first goes to the last."""
    dequantize = _made_by(node.inputs[0], _DEQUANTIZE)
    quantize = _made_by(dequantize.inputs[0], _QUANTIZE) if dequantize is not None else None
    pad = _made_by(quantize.inputs[0], "Pad") if quantize is not None else None
    if (
        dequantize is None
        or quantize is None
        or pad is None
        or _attribute(pad, "mode", "constant") != "constant"
    ):
        return
    readers = [list(one.outputs[0].uses()) for one in (pad, quantize, dequantize)]
    amounts, value = (
        _constant(pad.inputs[1]),
        _constant(pad.inputs[2]) if len(pad.inputs) > 2 else np.zeros(()),
    )
    if (
        any(len(one) != 1 for one in readers)
        or amounts is None
        or value is None
        or value.any()
        or (amounts < 0).any()
    ):
        return
    rank = len(amounts) // 2
    before, after = amounts[:rank], amounts[rank:]
    if before[:2].any() or after[:2].any() or len(pad.inputs) > 3:
        return
    own = np.asarray(_attribute(node, "pads", [0] * 2 * (rank - 2)))
    node.attributes["pads"] = ir.AttrInt64s(
        "pads", (own + np.concatenate([before[2:], after[2:]])).tolist()
    )
    quantize.replace_input_with(0, pad.inputs[0])
    for one in (quantize, dequantize):
        one.outputs[0].shape = _only(pad.inputs[0]).shape


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value, if it is of this kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _drop_unused(model: ir.Model) -> None:
    """Nodes and initializers that nothing reads any more."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if all(not one.uses() and one not in outputs for one in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]
