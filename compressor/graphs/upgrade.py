"""Upgrade of a graph to a newer version of ONNX's operators."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compressor.errors import RequirementError
from compressor.graphs.files import PROTOBUF_LIMIT_BYTES, typed_model
from compressor.graphs.saving import initializer_bytes

_SMALL_TENSOR_BYTES = 4096
"""Shapes, axes and other values that conversions read are smaller."""
_RESIZE_MODES_OPSET = 11
"""The first opset whose Resize states how coordinates are transformed; onnx leaves out that older
ones, and Upsample, count from the corner."""


def upgrade_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return a graph whose operators are of at least this version of ONNX.

    Weights are left out of what onnx converts, so that their size does not matter.

    Raises:
        RequirementError: onnx has no conversion for an operator, or branches hold more than 2 GB.
    """
    present = model.opset_imports.get("", 1)
    if present >= opset:
        return model
    remedy = f"export the model again with opset {opset} or newer"
    what = f"the graph has opset {present}, and opset {opset} is required"
    model = model.clone()
    weights = _detach_weights(model)
    if initializer_bytes(model) > PROTOBUF_LIMIT_BYTES:
        raise RequirementError(
            f"{what}: a graph with more than 2 GB in its branches cannot be upgraded",
            remedy=remedy,
        )
    _read_external_data(model)
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), opset)
    except (
        onnx.version_converter.ConvertError,
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequirementError(
            f"{what}: onnx cannot upgrade it ({reason})", remedy=remedy
        ) from error
    upgraded = typed_model(converted)
    if present < _RESIZE_MODES_OPSET <= opset:
        _keep_resize_modes(upgraded)
    _attach_weights(upgraded, weights)
    return upgraded


def _detach_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the large constants of the main graph, in place, and return the constants."""
    weights = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL_TENSOR_BYTES or value.is_graph_input():
            continue
        weights[name] = tensor
        del model.graph.initializers[name]
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        model.graph.inputs.append(value)
    return weights


def _read_external_data(model: ir.Model) -> None:
    """Read what still lies in other files, in place: onnx's result names no folder."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=name)


def _attach_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)


def _keep_resize_modes(model: ir.Model) -> None:
    """State in each Resize how Upsample and Resize of opset 10 transform coordinates, in place."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and not node.domain:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
