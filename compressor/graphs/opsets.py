"""ONNX operator set versions that plans and graphs share."""

from __future__ import annotations

from collections.abc import Mapping

BLOCKS_OPSET = 21
"""The first opset whose DequantizeLinear has blocks, and integers of 4 bits."""
DECODER_OPSETS: Mapping[str, int] = {"onnxruntime": 23, "portable": BLOCKS_OPSET}
"""Target of a decoder's graph to the opset that its operators require."""
