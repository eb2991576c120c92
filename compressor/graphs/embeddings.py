"""Tables of embeddings stored as integers: rows are looked up, and then dequantized.

Shapes: V rows, C columns.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import (
    DEQUANTIZE,
    Array,
    add_initializer,
    constant_array,
    describe_output,
)

_FEWEST_ROWS = 256
"""Rows from which a table is worth a node more."""
_HIGHEST = 127


def store_integer_tables(model: ir.Model) -> list[str]:
    """Store the tables that Gather alone reads as INT8 with a scale for each column, in place.

    Returns:
        The names of the tables.
    """
    stored = []
    for value in list(model.graph.initializers.values()):
        table = constant_array(value) if value.dtype == ir.DataType.FLOAT else None
        lookups = [use.node for use in value.uses() if _looks_up(use.node, use.idx, model)]
        is_table = table is not None and table.ndim == 2 and len(table) >= _FEWEST_ROWS
        if table is None or not is_table or len(lookups) < len(value.uses()) or not lookups:
            continue
        _store(model, value, table, lookups)
        stored.append(str(value.name))
    return stored


def _looks_up(node: ir.Node, index: int, model: ir.Model) -> bool:
    is_gather = node.op_type == "Gather" and not node.domain and index == 0
    return is_gather and node.graph is model.graph and node.attributes.get_int("axis", 0) == 0


def _store(model: ir.Model, value: ir.Value, table_VC: Array, lookups: list[ir.Node]) -> None:
    largest_C = np.abs(table_VC).max(axis=0)
    scales_C = np.where(largest_C > 0, largest_C / _HIGHEST, 1).astype(np.float32)
    integers_VC = np.clip(np.rint(table_VC / scales_C), -_HIGHEST, _HIGHEST).astype(np.int8)
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
        result = describe_output(
            dequantize, f"{output.name}.dequantized", ir.DataType.FLOAT, output.shape
        )
        model.graph.insert_after(node, dequantize)
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        dequantize.replace_input_with(0, output)
        output.dtype = ir.DataType.INT8
        if result.is_graph_output():
            output.name, result.name = f"{output.name}.rows", output.name
    del model.graph.initializers[name]
