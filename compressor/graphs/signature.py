"""Inputs, outputs and operator sets of an ONNX graph as labelled text."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from compressor.graphs.decoder.interface import PAST_PREFIX
from compressor.models.capabilities.signature import (
    REST,
    InputSpec,
    OutputSpec,
    Signature,
    describe_shape,
)

_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX's name of a dtype to torch's, where they differ."""
_UNNAMED = frozenset({"", "-1", "0", "?", "None", "none", "unk", "unknown"})
"""Names that exporters write for a dimension without one."""
_CLASSES_RANK = 2


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


def output_specs(model: onnx.ModelProto) -> tuple[OutputSpec, ...]:
    """Return the outputs of a graph, with the shapes that it declares."""
    return tuple(
        OutputSpec(
            str(value.name),
            _numpy_name(value),
            _sizes(value) if value.type.tensor_type.HasField("shape") else None,
        )
        for value in model.graph.output
    )


def graph_signature(model: onnx.ModelProto) -> Signature | None:
    """Return inputs and outputs of a graph; None for a decoder, whose cache is no input of data.

    The classes are those of the output ``logits``, or of an only output [N, C].
    """
    inputs, outputs = input_specs(model), output_specs(model)
    if any(spec.name.startswith(PAST_PREFIX) for spec in inputs):
        return None
    named = [spec for spec in outputs if spec.name == "logits"]
    only = outputs if len(outputs) == 1 and len(outputs[0].shape or ()) == _CLASSES_RANK else ()
    sizes = [spec.shape[-1] for spec in named or only if spec.shape]
    classes = next((size for size in sizes if isinstance(size, int)), None)
    names = tuple(spec.name for spec in outputs)
    return Signature(inputs, names, classes=classes, output_specs=outputs)


def unsupported_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Return the inputs that no data set holds, with their kind: text, sequence or optional."""
    kinds = {}
    for value in _required_inputs(model):
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            kinds[str(value.name)] = "text"
        elif not value.type.HasField("tensor_type"):
            kinds[str(value.name)] = str(value.type.WhichOneof("value")).removesuffix("_type")
    return kinds


def dimension(name: str, axis: int, size: int | str | None) -> int | str:
    """Return a dimension's size or name.

    An unnamed dimension gets a name of its own. So do those that exporters call -1, 0 or "?",
    which need not be equal to each other.
    """
    if isinstance(size, int):
        return size if size > 0 else f"{name}.{axis}"
    return f"{name}.{axis}" if size is None or size in _UNNAMED else size


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    shape = _sizes(value) if value.type.tensor_type.HasField("shape") else (REST,)
    return InputSpec(str(value.name), _numpy_name(value), shape)


def _numpy_name(value: onnx.ValueInfoProto) -> str:
    name = _dtype_name(value.type.tensor_type.elem_type)
    return _DTYPES.get(name, name)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        dimension(
            str(value.name),
            number,
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param,
        )
        for number, axis in enumerate(value.type.tensor_type.shape.dim)
    )


def _required_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs without a default value, which an initializer of the same name is."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def initializer_rows(model: onnx.ModelProto) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, dtype in lower case and shape of the initializers of the top graph.

    Where it has none, as paddle2onnx writes graphs, those are the tensors of Constant nodes.
    """
    constants = [
        (node.output[0], entry.t)
        for node in model.graph.node
        if node.op_type == "Constant"
        for entry in node.attribute
        if entry.name == "value"
    ]
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer] or constants
    return [
        (name, _DTYPES.get(kind := _dtype_name(tensor.data_type), kind), tuple(tensor.dims))
        for name, tensor in tensors
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
    sizes = (axis.dim_param or axis.dim_value or "?" for axis in tensor.shape.dim)
    return f"{dtype} {describe_shape(sizes)}"
