"""Gemm as MatMul and a bias, the form for which ONNX Runtime has integer kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.integer_regions import Product
from compressor.graphs.names import TRANSPOSED_SUFFIX
from compressor.graphs.values import add_initializer, constant_array, describe_output, unique_name
from compressor.models.quantized.quantization import Target


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
