"""Convert FP32 graphs to FP16, with casts around the nodes that stay in FP32.

A strongly typed TensorRT engine computes in the types of its graph, so the graph states the type of
each operator. A node is converted if ONNX allows FP16 for its operator and ``fp16_block_list`` does
not hold it back. Inputs and outputs of the graph keep their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.fp16_block_list import (
    BlockList,
    Cause,
    allows_fp16,
    blocked_nodes,
    can_output_fp16,
    divisor_of,
    is_convertible,
    is_float,
)
from compressor.graphs.names import HALF_SUFFIX
from compressor.graphs.values import add_initializer, constant_array, describe_output, insert_first

_FP32, _FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True, slots=True)
class Fp32Node:
    """A node that stays in FP32."""

    node: str
    operator: str
    reason: str
    cause: Cause

    def row(self) -> dict[str, str]:
        """Return the node as a row of the manifest."""
        return {"node": self.node, "operator": self.operator, "reason": self.reason}


def float_values(model: ir.Model) -> list[str]:
    """Return the names of the FP32 values that are inputs, or that nodes compute."""
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    return [str(value.name) for value in values if is_float(value) and value.name]


def divisors(model: ir.Model) -> list[str]:
    """Return the names of the FP32 values that nodes compute, and that others divide by."""
    names = (divisor_of(node) for node in model.graph)
    return list(dict.fromkeys(name for name in names if name is not None))


def convert_to_fp16(model: ir.Model, criteria: BlockList) -> list[Fp32Node]:
    """Convert a graph to FP16 in place.

    Args:
        model: a graph with the types of its values (``load_typed_model`` infers them). Nodes with
            values of unknown type stay in FP32.
        criteria: the ranges of its values on samples.

    Returns:
        The nodes that ONNX allows in FP16 and that stay in FP32.
    """
    blocked = blocked_nodes(model, criteria)
    fp32_nodes = {node for node in model.graph if node in blocked or not is_convertible(node)}
    types = {
        value: _FP16
        for node in model.graph
        if node not in fp32_nodes
        for value in node.outputs
        if can_output_fp16(node, value)
    }
    for value in _read_floats(model):
        _connect(model, value, types.get(value, _FP32), fp32_nodes)
    for node in model.graph:
        if node not in fp32_nodes:
            _retype_attributes(node, types)
    return [
        Fp32Node(node.name or node.outputs[0].name or "", node.op_type, reason.text, reason.cause)
        for node, reason in blocked.items()
    ]


def _read_floats(model: ir.Model) -> list[ir.Value]:
    """Return every FP32 value that a node may read."""
    computed = [value for node in model.graph for value in node.outputs]
    values = [*model.graph.inputs, *model.graph.initializers.values(), *computed]
    return [value for value in dict.fromkeys(values) if is_float(value)]


def _connect(
    model: ir.Model, value: ir.Value, stored: ir.DataType, fp32_nodes: set[ir.Node]
) -> None:
    """Give each reader of a value the type it needs, by a second constant or one cast."""
    readers: dict[ir.DataType, list[tuple[ir.Node, int]]] = {_FP32: [], _FP16: []}
    for reader, index in value.uses():
        stays = reader.graph is not model.graph or reader in fp32_nodes
        takes_fp16 = not stays and allows_fp16(reader, index, of_inputs=True)
        readers[_FP16 if takes_fp16 else _FP32].append((reader, index))
    if stored == _FP16:
        _store_as_fp16(model, value, readers[_FP32])
    elif readers[_FP16]:
        _replace_for_fp16_readers(model, value, readers[_FP16])


def _store_as_fp16(
    model: ir.Model, value: ir.Value, fp32_readers: list[tuple[ir.Node, int]]
) -> None:
    """Give a computed value the type FP16, and its FP32 readers and outputs a cast of it."""
    value.dtype = _FP16
    is_output = value in model.graph.outputs
    if not fp32_readers and not is_output:
        return
    cast = _add_cast(model, value, _FP32)
    for reader, index in fp32_readers:
        reader.replace_input_with(index, cast)
    if is_output:
        _replace_output(model, value, cast)


def _replace_for_fp16_readers(
    model: ir.Model, value: ir.Value, readers: list[tuple[ir.Node, int]]
) -> None:
    """Give the FP16 readers of an FP32 value a constant in FP16, or a cast."""
    array = constant_array(value)
    if array is None:
        replacement = _add_cast(model, value, _FP16)
    else:
        halved = array.astype(np.float32).astype(np.float16)
        replacement = add_initializer(model.graph, f"{value.name}{HALF_SUFFIX}", halved)
    for reader, index in readers:
        reader.replace_input_with(index, replacement)
    if array is not None and not value.uses() and value not in model.graph.outputs:
        model.graph.initializers.pop(str(value.name))


def _add_cast(model: ir.Model, value: ir.Value, to: ir.DataType) -> ir.Value:
    name = f"{value.name}.to_{'half' if to == _FP16 else 'float'}"
    node = ir.node("Cast", [value], {"to": int(to)}, name=name)
    result = describe_output(node, name, to, value.shape)
    producer = value.producer()
    if producer is None:
        insert_first(model.graph, node)
    else:
        model.graph.insert_after(producer, node)
    return result


def _replace_output(model: ir.Model, value: ir.Value, cast: ir.Value) -> None:
    """Make the cast an output of the graph, under the output's name."""
    name = value.name
    value.name = f"{name}{HALF_SUFFIX}"
    cast.name = name
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = cast


def _retype_attributes(node: ir.Node, types: Mapping[ir.Value, ir.DataType]) -> None:
    """Change the attributes that state the type of a node's output."""
    if not any(value in types for value in node.outputs):
        return
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() == int(_FP32):
            node.attributes[name] = ir.AttrInt64(name, int(_FP16))
    if node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        fill = attribute.as_tensor().numpy() if attribute is not None else np.zeros(1)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(np.float16)))
