"""Values of ONNX graphs in onnx_ir: read constants, find producers, add initializers and nodes."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
DEQUANTIZE = "DequantizeLinear"
QUANTIZE = "QuantizeLinear"


def constant_array(value: ir.Value | None) -> Array | None:
    """Return the array of a constant; None if the value is absent or computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def initializer_of(value: ir.Value) -> ir.Value | None:
    """Return the initializer that a value is, or is a Cast of; None if it is computed otherwise."""
    node = value.producer()
    if node is None:
        return value
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source if source is not None and source.producer() is None else None


def initializer_array(value: ir.Value) -> Array | None:
    """Return the array of ``initializer_of``, in the type in which it is stored."""
    return constant_array(initializer_of(value))


def producer_of(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that computes a value if it is of this operator, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or the default where it is not set."""
    stored = node.attributes.get(name)
    return default if stored is None else stored.value


def is_quantized_weight(node: ir.Node) -> bool:
    """Return True if a DequantizeLinear node reads stored integers."""
    return node.op_type == DEQUANTIZE and constant_array(node.inputs[0]) is not None


def add_initializer(
    graph: ir.Graph, name: str, values: Array, dtype: ir.DataType | None = None
) -> ir.Value:
    """Return the initializer of this name and these values, which is added if it is absent.

    Its name gets a number if the graph has another value of this name.

    Args:
        graph: the graph, changed in place.
        name: the initializer's name.
        values: its values.
        dtype: its type, for types that NumPy lacks, such as INT4; by default that of ``values``.
    """
    tensor = ir.tensor(values, dtype=dtype, name=name)
    present = graph.initializers.get(name)
    if present is not None and _holds(present, tensor):
        return present
    name = unique_name(graph, name)
    tensor.name = name
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def unique_name(graph: ir.Graph, name: str) -> str:
    """Return a name that no value of a graph has: this one, or this one with a number."""
    taken = {value.name for node in graph for value in node.outputs}
    taken |= {value.name for value in graph.inputs} | graph.initializers.keys()
    numbered = (f"{name}.{number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _holds(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    present = value.const_value
    return (
        present is not None
        and present.dtype == tensor.dtype
        and np.array_equal(present.numpy(), tensor.numpy())
    )


def describe_output(
    node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None
) -> ir.Value:
    """Set name, type and shape of a node's first output, and return it."""
    output = node.outputs[0]
    output.name, output.dtype, output.shape = name, dtype, shape
    return output


def insert_first(graph: ir.Graph, node: ir.Node) -> None:
    """Insert a node that reads only inputs and initializers, before all others."""
    graph.insert_before(graph[0], node)


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads, in place."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if all(not output.uses() and output not in outputs for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
