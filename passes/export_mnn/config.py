"""Configuration of the ``export-mnn`` pass; planning imports it, so it imports no runtime."""

from __future__ import annotations

from typing import Literal

from compressor.engine.contract import PassConfig
from passes.common.converted_parity import ConvertedParityConfig


class ExportMnnConfig(PassConfig):
    """Fields of an ``export-mnn`` step."""

    weights: Literal["float32", "float16", "int8"] = "float32"
    """Type of the stored weights of convolutions and matrix products. `int8`: rounded by MNN's
    converter, with a scale for each output channel. MNN computes in float with all of them."""
    parity: ConvertedParityConfig = ConvertedParityConfig()
    """Comparison with the ONNX graph that ends the pass. By default a relative error of 1e-3 is
    allowed, 0.01 with weights in float16, and 0.1 in 8 bits."""
