"""Weights of layers that compute in FP32, stored in FP16 with a Cast.

These are the layers in branches and loops, and recurrent layers, which ``convert_to_fp16`` leaves
in FP32. Runtimes compute the Cast when they open the file.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.fp16_block_list import FP16_MAX, is_too_small
from compressor.graphs.names import HALF_SUFFIX
from compressor.graphs.operator_weights import WEIGHT_POSITIONS
from compressor.graphs.values import (
    add_initializer,
    constant_array,
    describe_output,
    insert_first,
    unique_name,
)

_SMALLEST_BYTES = 1024
"""Bytes from which a constant is worth a Cast."""


def store_weights_as_halves(model: ir.Model) -> list[str]:
    """Store the FP32 weights of layers in FP16, in place, where FP16 holds their largest value.

    Returns:
        The names of the weights.
    """
    weights: dict[ir.Value, None] = {}
    for node in model.graph.all_nodes():
        for position in WEIGHT_POSITIONS.get(node.op_type, ()) if not node.domain else ():
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is not None and value.is_initializer() and _fits(value):
                weights[value] = None
    for value in weights:
        _store(value)
    return [str(value.name) for value in weights]


def has_halves(model: ir.Model) -> bool:
    """Return True if a constant or a value of a graph, or of one within, is in FP16."""
    constants = (value for graph in model.graphs() for value in graph.initializers.values())
    computed = (value for node in model.graph.all_nodes() for value in node.outputs)
    return any(value.dtype == ir.DataType.FLOAT16 for value in (*constants, *computed))


def _fits(value: ir.Value) -> bool:
    array = constant_array(value)
    if array is None or value.dtype != ir.DataType.FLOAT or array.nbytes < _SMALLEST_BYTES:
        return False
    if value.is_graph_output() or value.is_graph_input():
        return False
    largest = float(np.abs(array).max(initial=0.0))
    return largest <= FP16_MAX and not is_too_small(largest)


def _store(value: ir.Value) -> None:
    """Put a Cast between a weight and its readers, in the graph that holds the weight."""
    graph, array = value.graph, constant_array(value)
    assert isinstance(graph, ir.Graph) and array is not None  # noqa: S101 - an initializer
    readers = list(value.uses())
    stored = add_initializer(graph, f"{value.name}{HALF_SUFFIX}", array.astype(np.float16))
    name = unique_name(graph, f"{value.name}.to_float")
    node = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=name)
    del graph.initializers[str(value.name)]
    cast = describe_output(node, str(value.name), ir.DataType.FLOAT, value.shape)
    insert_first(graph, node)
    for reader, index in readers:
        reader.replace_input_with(index, cast)
