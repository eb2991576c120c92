"""Einsum with a constant weight as a matrix product, the form that has integer kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import (
    Array,
    add_initializer,
    attribute,
    constant_array,
    describe_output,
    remove_unused,
    unique_name,
)

_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class ProductEquation:
    """An equation whose last axes of the operand are summed, and those of the weight put last."""

    leading: str
    """Axes of the operand that stay; may begin with an ellipsis."""
    summed: str
    """Last axes of the operand, which are summed."""
    added: str
    """Last axes of the result, which are the weight's."""
    weight: str
    """Axes of the weight: those that are summed and those that are added, in any order."""


def product_equation(equation: str, weight: int) -> ProductEquation | None:
    """Return an equation as a matrix product; None if it has another form.

    Args:
        equation: of Einsum, such as ``bth,hnd->btnd``.
        weight: position of the weight among the operands.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow or len(operands) != 2:
        return None
    operand, matrix = operands[1 - weight], operands[weight]
    terms = [term.replace(_ELLIPSIS, "") for term in (operand, matrix, result)]
    if any(len(set(term)) < len(term) for term in terms) or _ELLIPSIS in matrix:
        return None
    summed = "".join(axis for axis in terms[0] if axis in matrix)
    added = "".join(axis for axis in terms[2] if axis in matrix)
    leading = operand.removesuffix(summed)
    fits = operand == leading + summed and result == leading + added
    is_product = leading and summed and added and set(matrix) == set(summed + added)
    reshapes = len(summed) > 1 or len(added) > 1
    if not fits or not is_product or (reshapes and _ELLIPSIS in leading):
        return None
    return ProductEquation(leading, summed, added, matrix)


def split_einsums(model: ir.Model) -> int:
    """Replace Einsum with a constant FP32 weight by a matrix product, in place.

    Where several axes are summed or added, they are joined by Reshape.

    Returns:
        The number of products.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain or len(node.inputs) != 2:
            continue
        constants = [constant_array(value) is not None for value in node.inputs]
        if sum(constants) != 1 or node.inputs[0] is None or node.inputs[1] is None:
            continue
        position = constants.index(True)
        weight = constant_array(node.inputs[position])
        equation = product_equation(attribute(node, "equation", ""), position)
        operand = node.inputs[1 - position]
        assert weight is not None  # noqa: S101 - it is constant
        assert operand is not None  # noqa: S101 - checked above
        if equation is None or weight.dtype != np.float32 or weight.ndim != len(equation.weight):
            continue
        if 0 not in weight.shape:
            _replace(model, node, operand, weight, equation)
            count += 1
    remove_unused(model.graph)
    return count


def _replace(
    model: ir.Model, node: ir.Node, operand: ir.Value, weight: Array, equation: ProductEquation
) -> None:
    """Put Reshape, MatMul and Reshape in the place of an Einsum."""
    sizes = dict(zip(equation.weight, weight.shape, strict=True))
    summed, added = ([sizes[axis] for axis in axes] for axes in (equation.summed, equation.added))
    order = [equation.weight.index(axis) for axis in equation.summed + equation.added]
    matrix_IO = weight.transpose(order).reshape(math.prod(summed), math.prod(added))
    output = node.outputs[0]
    name = str(output.name)
    if len(summed) > 1:
        joined = [0] * len(equation.leading) + [math.prod(summed)]  # 0: as it is
        operand = _reshape(model, node, operand, joined, f"{name}.operand")
    stored = add_initializer(model.graph, f"{name}.weight", np.ascontiguousarray(matrix_IO))
    product = ir.node("MatMul", [operand, stored], name=node.name)
    model.graph.insert_before(node, product)
    shape = None if operand.shape is None else ir.Shape([*operand.shape[:-1], math.prod(added)])
    result = describe_output(
        product, unique_name(model.graph, f"{name}.product"), ir.DataType.FLOAT, shape
    )
    if len(added) > 1:
        result = _reshape(model, node, result, [0] * len(equation.leading) + added, f"{name}.split")
    result.type, result.shape = output.type, output.shape
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    result.name = name


def _reshape(
    model: ir.Model, node: ir.Node, value: ir.Value, sizes: list[int], name: str
) -> ir.Value:
    """Return a value with other axes, computed before a node; sizes of 0 stay."""
    shape = add_initializer(model.graph, f"{name}.shape", np.array(sizes, np.int64))
    reshape = ir.node("Reshape", [value, shape], name=f"{name}.reshape")
    model.graph.insert_before(node, reshape)
    known = None
    if value.shape is not None:
        known = ir.Shape([size or value.shape[index] for index, size in enumerate(sizes)])
    return describe_output(reshape, unique_name(model.graph, name), ir.DataType.FLOAT, known)
