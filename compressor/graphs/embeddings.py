"""Tables of embeddings stored as INT8: rows are looked up, and then multiplied by their scales.

Shapes: V rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import (
    add_initializer,
    constant_array,
    describe_output,
    unique_name,
)

_FEWEST_ROWS, _FEWEST_COLUMNS = 256, 32
"""Size from which a table is worth a node more; smaller ones are anchors and positions."""
_SIZES = frozenset({"Shape", "Size"})
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_HIGHEST = 127


def embedding_tables(model: ir.Model) -> list[ir.Value]:
    """Return the tables in which nothing but an input of the graph looks up rows."""
    return [value for value in model.graph.initializers.values() if _is_table(value, model)]


def store_integer_tables(model: ir.Model, ignored: Sequence[str] = ()) -> list[str]:
    """Store embedding tables as INT8 with a scale for each row, in place.

    Rows of rare words are far smaller than others: scales of columns would round them away.

    Args:
        model: the graph.
        ignored: patterns of the names of tables that stay in float.

    Returns:
        The names of the tables that are stored.
    """
    stored = []
    for value in embedding_tables(model):
        name = str(value.name)
        if not any(fnmatchcase(name, pattern) for pattern in ignored):
            _store(model, value)
            stored.append(name)
    return stored


def _is_table(value: ir.Value, model: ir.Model) -> bool:
    table = constant_array(value) if value.dtype == ir.DataType.FLOAT else None
    if table is None or table.ndim != 2 or value.is_graph_output() or not value.uses():
        return False
    is_large = table.shape[0] >= _FEWEST_ROWS and table.shape[1] >= _FEWEST_COLUMNS
    return is_large and all(_looks_up(use.node, use.idx, model) for use in value.uses())


def _looks_up(node: ir.Node, index: int, model: ir.Model) -> bool:
    is_gather = node.op_type == "Gather" and not node.domain and index == 0
    if not is_gather or node.graph is not model.graph or node.attributes.get_int("axis", 0) != 0:
        return False
    return node.inputs[1] is not None and _depends_on_integers(node.inputs[1])


def _depends_on_integers(rows: ir.Value) -> bool:
    """Return True if an integer input of the graph decides the rows, and not its size alone."""
    pending, seen = [rows], set()
    while pending:
        value = pending.pop()
        producer = value.producer()
        if producer is None:
            if value.is_graph_input() and value.dtype in _INTEGERS:
                return True
        elif producer not in seen and producer.op_type not in _SIZES:
            seen.add(producer)
            pending += [operand for operand in producer.inputs if operand is not None]
    return False


def _store(model: ir.Model, value: ir.Value) -> None:
    table_VC, name = constant_array(value), str(value.name)
    assert table_VC is not None  # noqa: S101 - a table is constant
    largest_V1 = np.abs(table_VC).max(axis=1, keepdims=True)
    scales_V1 = np.where(largest_V1 > 0, largest_V1 / _HIGHEST, 1).astype(np.float32)
    integers_VC = np.clip(np.rint(table_VC / scales_V1), -_HIGHEST, _HIGHEST).astype(np.int8)
    integers = add_initializer(model.graph, f"{name}.integers", integers_VC)
    scales = add_initializer(model.graph, f"{name}.row_scales", scales_V1)
    for node in [use.node for use in value.uses()]:
        node.replace_input_with(0, integers)
        _scale_rows(model.graph, node, scales)
    del model.graph.initializers[name]


def _scale_rows(graph: ir.Graph, lookup: ir.Node, scales: ir.Value) -> None:
    """Multiply looked-up integers by the scales of their rows."""
    output = lookup.outputs[0]
    rows = ir.node("Gather", [scales, lookup.inputs[1]], name=f"{output.name}.scales")
    cast = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{output.name}.cast")
    for node, part in ((rows, "scales"), (cast, "cast")):
        name = unique_name(graph, f"{output.name}.{part}")
        describe_output(node, name, ir.DataType.FLOAT, None)
    product = ir.node("Mul", [cast.outputs[0], rows.outputs[0]], name=f"{output.name}.scale")
    name = unique_name(graph, f"{output.name}.scaled")
    result = describe_output(product, name, ir.DataType.FLOAT, output.shape)
    graph.insert_after(lookup, [rows, cast, product])
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    output.type = ir.TensorType(ir.DataType.INT8)  # copies of the graph share the old type
    if result.is_graph_output():
        output.name, result.name = f"{output.name}.rows", output.name
