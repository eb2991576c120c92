"""The graph that is given to the builder: read, made fit for TensorRT, and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir

from compressor.graphs.files import PROTOBUF_LIMIT_BYTES
from compressor.graphs.saving import initializer_bytes, save_model
from compressor.models.capabilities.signature import InputSpec

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


@dataclass(frozen=True, slots=True)
class Integers:
    """How many weights and values are dequantized from integers."""

    int8: int
    int4: int


def inputs_of(model: ir.Model) -> tuple[InputSpec, ...]:
    """The graph's inputs; a dimension without a name gets one of its own."""
    return tuple(_input(value) for value in model.graph.inputs)


def _input(value: ir.Value) -> InputSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    name = str(value.name)
    sizes = enumerate(value.shape or ())
    return InputSpec(
        name,
        dtype,
        tuple(
            one if isinstance(one, int) else one.value or f"{name}.{axis}" for axis, one in sizes
        ),
    )


def integers_of(model: ir.Model) -> Integers:
    """Counted by the type of what DequantizeLinear reads."""
    read = [
        node.inputs[0].dtype
        for node in model.graph.all_nodes()
        if node.op_type == "DequantizeLinear" and node.inputs[0]
    ]
    return Integers(read.count(ir.DataType.INT8), read.count(ir.DataType.INT4))


def fix_defaults(model: ir.Model) -> list[str]:
    """Make constants of the inputs that have a default, in place: an engine is fed all that it takes. Their names."""
    fixed = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    for value in fixed:
        model.graph.inputs.remove(value)
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.numpy().shape)
    return [str(value.name) for value in fixed]


def widen_bytes(model: ir.Model) -> None:
    """Make FP32 of each UINT8 input at once, in place: TensorRT takes bytes at its door and computes nothing with them.

    Where something else than moving is done with the bytes, the graph stays as it is.
    """
    for value in list(model.graph.inputs):
        if value.dtype != ir.DataType.UINT8:
            continue
        region = _moved(value)
        readers = list(value.uses())
        if region is None or not readers:
            continue
        cast = ir.node(
            "Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.to_float"
        )
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = (
            cast.name,
            ir.DataType.FLOAT,
            value.shape,
        )
        model.graph.insert_before(model.graph[0], cast)
        for reader, index in readers:
            reader.replace_input_with(index, cast.outputs[0])
        for node in region:
            node.outputs[0].dtype = ir.DataType.FLOAT


def _moved(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that bytes go through until they are cast; None where anything else reads them."""
    found: list[ir.Node] = []
    pending = [value]
    while pending:
        one = pending.pop()
        if one.is_graph_output():
            return None
        for reader, index in one.uses():
            if reader.op_type == "Cast":
                continue
            if index or reader.op_type not in _MOVING or reader.graph is not value.graph:
                return None
            found.append(reader)
            pending.append(reader.outputs[0])
    return found


def stuck_bytes(model: ir.Model) -> list[str]:
    """One line for each UINT8 input that something else than a cast reads: TensorRT computes nothing with bytes."""
    return [
        f"input {value.name}: it is UINT8, and {reader.op_type} {reader.name} computes with it; cast it first"
        for value in model.graph.inputs
        if value.dtype == ir.DataType.UINT8
        for reader, _ in value.uses()
        if reader.op_type != "Cast"
    ]


def write(model: ir.Model, folder: Path) -> list[str]:
    """Write ``model.onnx``, and beyond 2 GB its data beside it; equal graphs give equal bytes.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    external = initializer_bytes(model) > PROTOBUF_LIMIT_BYTES
    return save_model(model, folder, external=external)
