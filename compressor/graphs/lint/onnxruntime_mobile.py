"""Rules of ONNX Runtime on phones: its own CPU kernels, and those of XNNPACK.

XNNPACK is the provider that ONNX Runtime's packages for Android and iOS have for the CPU. What it
does not take, the runtime's own kernels compute. The rules for convolutions are those that ONNX
Runtime's sources state (``core/providers/xnnpack/nn/conv_base.cc``).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.onnxruntime import onnxruntime_problems
from compressor.graphs.lint.problem import Problem, Rule

_IMAGE_RANK = 4
_AXES = ("channels", "height", "width")
_SIGNED, _UNSIGNED = TensorProto.INT8, TensorProto.UINT8


def onnxruntime_mobile_problems(index: GraphIndex) -> Iterator[Problem]:
    """Yield the products that stay in float, and the convolutions that XNNPACK does not take."""
    yield from onnxruntime_problems(index)
    yield from xnnpack_problems(index)


def xnnpack_problems(index: GraphIndex) -> Iterator[Problem]:
    """Yield the convolutions that XNNPACK leaves to ONNX Runtime's own kernels."""
    for node in index.nodes:
        if node.op_type == "Conv" and node.domain in {"", "ai.onnx"}:
            reasons = list(_reasons(index, node))
            if reasons:
                yield Problem.of(node, Rule.NO_XNNPACK, "not for XNNPACK: " + "; ".join(reasons))


def _reasons(index: GraphIndex, node: onnx.NodeProto) -> Iterator[str]:
    shape = index.shapes.get(node.input[0])
    if shape is None or len(shape) != _IMAGE_RANK:
        yield "its input is not known to have the shape [batch, channels, height, width]"
    elif varying := [
        axis for axis, size in zip(_AXES, shape[1:], strict=True) if not isinstance(size, int)
    ]:
        yield f"channels, height and width have to be fixed; not fixed: {', '.join(varying)}"
    elif (groups := _attribute(node, "group", 1)) not in {1, shape[1]}:
        yield f"{groups} groups of {shape[1]} channels; it takes 1, or as many as channels"
    if not index.is_weight(node.input[1]):
        yield "its weight is computed"
    if _attribute(node, "auto_pad", b"NOTSET") == b"SAME_LOWER":
        yield "padding SAME_LOWER"
    if index.is_dequantized(node.input[0]) and index.is_dequantized(node.input[1]):
        yield from _integer_reasons(index, node)


def _integer_reasons(index: GraphIndex, node: onnx.NodeProto) -> Iterator[str]:
    """Yield why a quantized convolution is not taken: XNNPACK multiplies integers of one sign."""
    values, weight = (index.producers[name] for name in node.input[:2])
    types = [index.types.get(source.input[0]) for source in (values, weight)]
    if types == [_UNSIGNED, _SIGNED]:
        yield (
            "UINT8 activations with INT8 weights; it takes INT8 with INT8, as "
            "`target: tensorrt` and `optimize-onnx` with it store them"
        )
    elif types not in ([_SIGNED, _SIGNED], [_UNSIGNED, _UNSIGNED]):
        yield "integers other than INT8 with INT8, or UINT8 with UINT8"
    elif types == [_UNSIGNED, _UNSIGNED] and _has_channel_scales(index, weight):
        yield "UINT8 weights with a scale for each channel; it takes one scale for all"


def _has_channel_scales(index: GraphIndex, weight: onnx.NodeProto) -> bool:
    scale = index.array(weight.input[1])
    return scale is not None and scale.size > 1


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
