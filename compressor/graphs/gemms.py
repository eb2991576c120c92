"""Gemm as MatMul and a bias, the form for which ONNX Runtime has integer kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.integer_regions import Product
from compressor.graphs.names import TRANSPOSED_SUFFIX
from compressor.graphs.values import (
    add_initializer,
    attribute,
    constant_array,
    describe_output,
    remove_unused,
    unique_name,
)
from compressor.models.quantized.quantization import Target


def fold_gemm_factors(model: ir.Model) -> None:
    """Multiply constant weights and biases of Gemm by its factors, and write transA out, in place.

    What is left has the form of a matrix product with a bias. Computed biases are scaled by a Mul.
    """
    for node in list(model.graph):
        if node.op_type != "Gemm" or node.domain or constant_array(node.inputs[1]) is None:
            continue
        if attribute(node, "transA", 0):
            node.replace_input_with(0, _transposed(model, node))
        for position, key in ((1, "alpha"), (2, "beta")):
            factor = attribute(node, key, 1.0)
            if factor != 1.0 and position < len(node.inputs) and node.inputs[position] is not None:
                node.replace_input_with(position, _scaled(model, node, position, factor))
        for key in ("alpha", "beta", "transA"):
            node.attributes.pop(key, None)
    remove_unused(model.graph)


def _transposed(model: ir.Model, node: ir.Node) -> ir.Value:
    """Return the first operand of a node, transposed before it."""
    value = node.inputs[0]
    assert value is not None  # noqa: S101 - Gemm has two operands
    assert value.dtype is not None  # noqa: S101 - a typed model
    shape = None if value.shape is None else ir.Shape([value.shape[1], value.shape[0]])
    transpose = ir.node("Transpose", [value], {"perm": [1, 0]})
    model.graph.insert_before(node, transpose)
    name = unique_name(model.graph, f"{node.outputs[0].name}.transposed")
    return describe_output(transpose, name, value.dtype, shape)


def _scaled(model: ir.Model, node: ir.Node, position: int, factor: float) -> ir.Value:
    """Return an operand of a node times a factor: a constant, or the result of a Mul."""
    value = node.inputs[position]
    assert value is not None  # noqa: S101 - the caller checked it
    array = constant_array(value)
    name = f"{value.name}.scaled"
    if array is not None:
        return add_initializer(model.graph, name, array * array.dtype.type(factor))
    assert value.dtype is not None  # noqa: S101 - a typed model
    constant = np.array(factor, value.dtype.numpy())
    multiply = ir.node("Mul", [value, add_initializer(model.graph, f"{name}.factor", constant)])
    model.graph.insert_before(node, multiply)
    return describe_output(multiply, unique_name(model.graph, name), value.dtype, value.shape)


def split_gemm(model: ir.Model, product: Product, target: Target) -> Product:
    """Replace a Gemm by MatMul and a bias, in place; other products are returned as they are.

    For ONNX Runtime the bias is subtracted, negated: it fuses MatMul and Add to Gemm again.
    """
    node = product.node
    if node.op_type != "Gemm":
        return product
    weight = product.weight
    if product.axis == 0:
        array = constant_array(weight)
        assert array is not None  # noqa: S101 - a product has a constant weight
        name = f"{weight.name}{TRANSPOSED_SUFFIX}"
        weight = add_initializer(model.graph, name, np.ascontiguousarray(array.T))
    output = node.outputs[0]
    matmul = ir.node("MatMul", [product.source, weight], name=node.name)
    name = unique_name(model.graph, f"{output.name}.product")
    result = describe_output(matmul, name, ir.DataType.FLOAT, output.shape)
    added = [matmul]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        added.append(_bias_node(model, result, bias, target))
        result = added[-1].outputs[0]
    model.graph.insert_before(node, added)
    result.type, result.shape = output.type, output.shape
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    result.name = output.name
    return Product(matmul, 1)


def _bias_node(model: ir.Model, x: ir.Value, bias: ir.Value, target: Target) -> ir.Node:
    values = constant_array(bias)
    if target != "onnxruntime" or values is None:
        return ir.node("Add", [x, bias])
    return ir.node("Sub", [x, add_initializer(model.graph, f"{bias.name}.negative", -values)])
