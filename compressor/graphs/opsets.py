"""ONNX operator set versions that plans and graphs share."""

from __future__ import annotations

from collections.abc import Mapping

INTEGERS_OPSET = 13
"""The first opset whose QuantizeLinear has a scale for each output."""
BLOCKS_OPSET = 21
"""The first opset whose DequantizeLinear has blocks, and integers of 4 bits."""
DECODER_OPSETS: Mapping[str, int] = {"onnxruntime": 23, "portable": BLOCKS_OPSET}
"""Target of a decoder's graph to the opset that its operators require."""
