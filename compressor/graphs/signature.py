"""Inputs, outputs and operator sets of an ONNX graph as labelled text."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from compressor.models.capabilities.signature import InputSpec

_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX's name of a dtype to torch's, where they differ."""


def signature_rows(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return (label, text) rows: operator sets, nodes, producer, inputs and outputs."""
    opsets = ", ".join(
        f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import
    )
    rows = [("opsets", opsets), ("nodes", str(len(model.graph.node)))]
    if model.producer_name:
        rows.append(("producer", f"{model.producer_name} {model.producer_version}".strip()))
    inputs = _value_rows("input", _required_inputs(model))
    return [*rows, *inputs, *_value_rows("output", model.graph.output)]


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Return the inputs of a graph; an unnamed dimension gets a name of its own."""
    return tuple(_input_spec(value) for value in _required_inputs(model))


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor, name = value.type.tensor_type, str(value.name)
    dtype = _dtype_name(tensor.elem_type)
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"{name}.{number}"
        for number, axis in enumerate(tensor.shape.dim)
    )
    return InputSpec(name, _DTYPES.get(dtype, dtype), shape)


def _required_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs without a default value, which an initializer of the same name is."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def initializer_rows(model: onnx.ModelProto) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, dtype in lower case and shape of the initializers of the top graph."""
    return [
        (tensor.name, _DTYPES.get(name := _dtype_name(tensor.data_type), name), tuple(tensor.dims))
        for tensor in model.graph.initializer
    ]


def _dtype_name(number: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"


def _value_rows(label: str, values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, str]]:
    return [(f"{label} {value.name}", _tensor_type(value)) for value in values]


def _tensor_type(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return "not a tensor"
    tensor = value.type.tensor_type
    dtype = _dtype_name(tensor.elem_type)
    if not tensor.HasField("shape"):
        return f"{dtype}, any shape"
    sizes = (axis.dim_param or str(axis.dim_value or "?") for axis in tensor.shape.dim)
    return f"{dtype} [{', '.join(sizes)}]"
