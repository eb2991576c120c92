"""Inputs, outputs and operator sets of an ONNX graph as labelled text."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def signature_rows(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return (label, text) rows: operator sets, nodes, producer, inputs and outputs."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    opsets = ", ".join(
        f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import
    )
    rows = [("opsets", opsets), ("nodes", str(len(model.graph.node)))]
    if model.producer_name:
        rows.append(("producer", f"{model.producer_name} {model.producer_version}".strip()))
    return [*rows, *_value_rows("input", inputs), *_value_rows("output", model.graph.output)]


def _value_rows(label: str, values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, str]]:
    return [(f"{label} {value.name}", _tensor_type(value)) for value in values]


def _tensor_type(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return "not a tensor"
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{dtype}, any shape"
    sizes = (axis.dim_param or str(axis.dim_value or "?") for axis in tensor.shape.dim)
    return f"{dtype} [{', '.join(sizes)}]"
