"""Configuration of the ``export-ort`` pass; planning imports it, so it imports no runtime."""

from __future__ import annotations

from typing import Literal

from compressor.engine.contract import PassConfig
from passes.common.converted_parity import ConvertedParityConfig


class ExportOrtConfig(PassConfig):
    """Fields of an ``export-ort`` step."""

    platform: Literal["arm64", "amd64"] = "arm64"
    """Kind of processor that executes the file. `arm64`: phones, whose kernels keep signed 8-bit
    activations. `amd64`: also blocked layouts of convolutions, which only such processors have."""
    optimizations: Literal["applied", "saved"] = "applied"
    """When the runtime's fusions are made. `applied`: now, for the runtime's own CPU kernels and
    XNNPACK. `saved`: on the phone, for what a provider such as NNAPI or Core ML leaves over; they
    are replayed only where the application sets `session.enable_saved_runtime_optimizations`."""
    parity: ConvertedParityConfig = ConvertedParityConfig()
    """Comparison with the ONNX graph that ends the pass. By default a relative error of 1e-4 is
    allowed, and 0.05 for a graph with integers or in float16, whose kernels may round a value to
    another neighbour."""
