"""Convert graphs in FP16 to FP32, which is exact; inputs and outputs keep their types.

``store_as_halves`` then lets the file hold in FP16 what is still exact in it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.values import add_initializer, describe_output, insert_first, unique_name

_FP16, _FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT
_SMALLEST_BYTES = 1024
"""Bytes from which a constant is worth a Cast."""
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
"""Attributes that state the type of a node's output."""


def widen_halves(model: ir.Model) -> bool:
    """Convert every value and constant in FP16 to FP32, in place.

    Args:
        model: a graph with the types of its values.

    Returns:
        False if the graph has nothing in FP16, and stays as it is.
    """
    graphs = list(model.graphs())
    values = [value for graph in graphs for value in graph.initializers.values()]
    values += [value for graph in graphs for node in graph for value in node.outputs]
    values += [value for graph in graphs for value in graph.inputs]
    halves = [value for value in values if value.dtype == _FP16]
    if not halves:
        return False
    outputs = [value for value in model.graph.outputs if value.dtype == _FP16]
    for value in halves:
        if value.const_value is not None:
            widened = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(widened, name=value.name)
        if not (value.is_graph_input() and value.graph is model.graph):
            value.dtype = _FP32
    for node in model.graph.all_nodes():
        _widen_attributes(node)
    for value in list(model.graph.inputs):
        if value.dtype == _FP16:
            _cast_input(model, value)
    for value in dict.fromkeys(outputs):
        _cast_output(model, value)
    return True


def store_as_halves(model: ir.Model) -> None:
    """Store FP32 constants whose values FP16 holds exactly in FP16, with a Cast, in place.

    Runtimes compute the Cast when they open the file.
    """
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if value.dtype != _FP32 or tensor is None or tensor.nbytes < _SMALLEST_BYTES:
            continue
        if value.is_graph_output():
            continue
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            halves = array.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), array):
            stored = add_initializer(model.graph, f"{value.name}.half", halves)
            name = unique_name(model.graph, f"{value.name}.float")
            node = ir.node("Cast", [stored], {"to": int(_FP32)}, name=name)
            cast = describe_output(node, name, _FP32, value.shape)
            insert_first(model.graph, node)
            for reader, index in list(value.uses()):
                reader.replace_input_with(index, cast)
            del model.graph.initializers[str(value.name)]


def _widen_attributes(node: ir.Node) -> None:
    for name in _TYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() == int(_FP16):
            node.attributes[name] = ir.AttrInt64(name, int(_FP32))
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FP16:
            widened = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
            node.attributes[name] = ir.AttrTensor(name, widened)


def _cast_input(model: ir.Model, value: ir.Value) -> None:
    """Let the readers of an input read it in FP32."""
    readers = list(value.uses())
    name = unique_name(model.graph, f"{value.name}.float")
    node = ir.node("Cast", [value], {"to": int(_FP32)}, name=name)
    cast = describe_output(node, name, _FP32, value.shape)
    insert_first(model.graph, node)
    for reader, index in readers:
        reader.replace_input_with(index, cast)


def _cast_output(model: ir.Model, value: ir.Value) -> None:
    """Give an output of the graph its type again."""
    if value.is_graph_input():
        return
    name = str(value.name)
    node = ir.node("Cast", [value], {"to": int(_FP16)}, name=f"{name}.to_half")
    cast = node.outputs[0]
    cast.dtype, cast.shape = _FP16, value.shape
    producer = value.producer()
    if producer is None:  # a constant
        model.graph.append(node)
    else:
        model.graph.insert_after(producer, node)
    inner = unique_name(model.graph, f"{name}.float")
    if value.is_initializer():
        model.graph.initializers.pop(name)
        value.name = inner
        model.graph.register_initializer(value)
    value.name = inner
    cast.name = name
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = cast
