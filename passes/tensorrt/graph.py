"""The graph that is passed to the builder: its inputs, its integers, and changes for TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir

from compressor.graphs.saving import exceeds_protobuf, save_model
from compressor.graphs.signature import dimension

_MOVING = frozenset(
    {
        "Reshape",
        "Transpose",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Expand",
        "Gather",
    }
)
"""Operators that move values without computing with them."""


@dataclass(frozen=True, slots=True)
class IntegerCounts:
    """Number of DequantizeLinear nodes by the type of the integers that they read."""

    int8: int
    int4: int


def count_integers(model: ir.Model) -> IntegerCounts:
    """Return how many weights and values are dequantized from INT8 and from INT4."""
    types = [
        node.inputs[0].dtype
        for node in model.graph.all_nodes()
        if node.op_type == "DequantizeLinear" and node.inputs[0]
    ]
    return IntegerCounts(types.count(ir.DataType.INT8), types.count(ir.DataType.INT4))


def cast_byte_inputs(model: ir.Model) -> None:
    """Cast each UINT8 input to FP32 where it enters the graph, in place.

    TensorRT takes UINT8 inputs, but computes nothing with them. An input whose bytes are used in
    other ways than to be moved and cast stays as it is.
    """
    for value in list(model.graph.inputs):
        if value.dtype != ir.DataType.UINT8:
            continue
        movers = _nodes_before_cast(value)
        readers = list(value.uses())
        if movers is None or not readers:
            continue
        cast = ir.node(
            "Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.to_float"
        )
        output = cast.outputs[0]
        output.name, output.dtype, output.shape = cast.name, ir.DataType.FLOAT, value.shape
        model.graph.insert_before(model.graph[0], cast)
        for reader, index in readers:
            reader.replace_input_with(index, output)
        for node in movers:
            node.outputs[0].dtype = ir.DataType.FLOAT


def _nodes_before_cast(value: ir.Value) -> list[ir.Node] | None:
    """Return the nodes that move bytes until they are cast; None if any node computes with them."""
    movers: list[ir.Node] = []
    pending = [value]
    while pending:
        moved = pending.pop()
        if moved.is_graph_output():
            return None
        for reader, index in moved.uses():
            if reader.op_type == "Cast":
                continue
            if index or reader.op_type not in _MOVING or reader.graph is not value.graph:
                return None
            movers.append(reader)
            pending.append(reader.outputs[0])
    return movers


def name_dimensions(model: ir.Model) -> None:
    """Give each unnamed dimension of the inputs a name of its own, in place.

    TensorRT takes dimensions of one name for equal, even where exporters call all of them "?".
    """
    for value in model.graph.inputs:
        if value.shape is not None:
            sizes = (size if isinstance(size, int) else size.value for size in value.shape)
            value.shape = ir.Shape(
                [dimension(str(value.name), axis, size) for axis, size in enumerate(sizes)]
            )


def byte_arithmetic(model: ir.Model) -> list[str]:
    """Return one line for each node other than a Cast that reads a UINT8 input."""
    return [
        f"input {value.name}: it is UINT8, and {reader.op_type} {reader.name} computes with it; "
        "cast it first"
        for value in model.graph.inputs
        if value.dtype == ir.DataType.UINT8
        for reader, _ in value.uses()
        if reader.op_type != "Cast"
    ]


def write_graph(model: ir.Model, folder: Path) -> list[str]:
    """Write ``model.onnx``, and beyond 2 GB its data beside it; equal graphs give equal bytes.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    return save_model(model, folder, external=exceeds_protobuf(model))
