"""Tables of embeddings stored as integers: rows are looked up, and then dequantized.

Shapes: V rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import (
    DEQUANTIZE,
    Array,
    add_initializer,
    constant_array,
    describe_output,
    unique_name,
)

_FEWEST_ROWS, _FEWEST_COLUMNS = 256, 32
"""Size from which a table is worth a node more; smaller ones are anchors and positions."""
_PASSING = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"})
"""Operators between an input and the rows that it looks up."""
_HIGHEST = 127
_LARGEST_ERROR = 0.02
"""Mean relative error of a row, from which a table stays in float: single rows are far larger."""


def embedding_tables(model: ir.Model) -> list[ir.Value]:
    """Return the tables in which nothing but an input of the graph looks up rows."""
    return [value for value in model.graph.initializers.values() if _is_table(value, model)]


def store_integer_tables(model: ir.Model, ignored: Sequence[str] = ()) -> list[str]:
    """Store embedding tables as INT8 with a scale for each column, in place.

    Args:
        model: the graph.
        ignored: patterns of the names of tables that stay in float.

    Returns:
        The names of the tables that are stored; those stay in float that would lose too much.
    """
    stored = []
    for value in embedding_tables(model):
        name = str(value.name)
        table = constant_array(value)
        if table is None or any(fnmatchcase(name, pattern) for pattern in ignored):
            continue
        scales_C, integers_VC = _round(table)
        if _error(table, integers_VC * scales_C) <= _LARGEST_ERROR:
            _store(model, value, scales_C, integers_VC)
            stored.append(name)
    return stored


def _is_table(value: ir.Value, model: ir.Model) -> bool:
    table = constant_array(value) if value.dtype == ir.DataType.FLOAT else None
    if table is None or table.ndim != 2 or value.is_graph_output() or not value.uses():
        return False
    is_large = table.shape[0] >= _FEWEST_ROWS and table.shape[1] >= _FEWEST_COLUMNS
    return is_large and all(_looks_up(use.node, use.idx, model) for use in value.uses())


def _round(table_VC: Array) -> tuple[Array, Array]:
    largest_C = np.abs(table_VC).max(axis=0)
    scales_C = np.where(largest_C > 0, largest_C / _HIGHEST, 1).astype(np.float32)
    integers_VC = np.clip(np.rint(table_VC / scales_C), -_HIGHEST, _HIGHEST).astype(np.int8)
    return scales_C, integers_VC


def _error(table_VC: Array, rounded_VC: Array) -> float:
    """Return the mean relative error of the rows that are not zero."""
    lengths_V = np.linalg.norm(table_VC, axis=1)
    errors_V = np.linalg.norm(rounded_VC - table_VC, axis=1)
    used_V = lengths_V > 0
    return float((errors_V[used_V] / lengths_V[used_V]).mean()) if used_V.any() else 0.0


def _looks_up(node: ir.Node, index: int, model: ir.Model) -> bool:
    is_gather = node.op_type == "Gather" and not node.domain and index == 0
    if not is_gather or node.graph is not model.graph or node.attributes.get_int("axis", 0) != 0:
        return False
    rows = node.inputs[1]
    while rows is not None and (producer := rows.producer()) is not None:
        if producer.op_type not in _PASSING:
            return False
        rows = producer.inputs[0]
    return rows is not None and rows.is_graph_input()


def _store(model: ir.Model, value: ir.Value, scales_C: Array, integers_VC: Array) -> None:
    lookups = [use.node for use in value.uses()]
    name = str(value.name)
    integers = add_initializer(model.graph, f"{name}.integers", integers_VC)
    scales = add_initializer(model.graph, f"{name}.column_scales", scales_C)
    zeros = add_initializer(model.graph, f"{name}.column_zeros", np.zeros(scales_C.shape, np.int8))
    for node in lookups:
        output = node.outputs[0]
        node.replace_input_with(0, integers)
        rank = None if output.shape is None else len(output.shape)
        axis = -1 if rank is None else rank - 1
        dequantize = ir.node(
            DEQUANTIZE, [output, scales, zeros], {"axis": axis}, name=f"{output.name}.dequantize"
        )
        new_name = unique_name(model.graph, f"{output.name}.dequantized")
        result = describe_output(dequantize, new_name, ir.DataType.FLOAT, output.shape)
        model.graph.insert_after(node, dequantize)
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        dequantize.replace_input_with(0, output)
        output.type = ir.TensorType(ir.DataType.INT8)  # copies of the graph share the old type
        if result.is_graph_output():
            output.name, result.name = f"{output.name}.rows", output.name
    del model.graph.initializers[name]
