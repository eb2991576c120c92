"""Upgrade of a graph to a newer version of ONNX's operators."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compressor.errors import RequirementError
from compressor.graphs.files import PROTOBUF_LIMIT_BYTES, typed_model
from compressor.graphs.saving import initializer_bytes


def upgrade_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return a graph whose operators are of at least this version of ONNX.

    Raises:
        RequirementError: onnx has no conversion for an operator, or the graph exceeds 2 GB.
    """
    present = model.opset_imports.get("", 1)
    if present >= opset:
        return model
    remedy = f"export the model again with opset {opset} or newer"
    what = f"the graph has opset {present}, and opset {opset} is required"
    if initializer_bytes(model) > PROTOBUF_LIMIT_BYTES:
        raise RequirementError(
            f"{what}: a graph of more than 2 GB cannot be upgraded", remedy=remedy
        )
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
    return typed_model(converted)
