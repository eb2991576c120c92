"""Configuration of the ``export-mnn`` pass; planning imports it, so it imports no runtime."""

from __future__ import annotations

from typing import Literal

from compressor.engine.contract import PassConfig
from passes.common.converted_parity import ConvertedParityConfig


class ExportMnnConfig(PassConfig):
    """Fields of an ``export-mnn`` step."""

    weights: Literal["float32", "float16", "int8"] = "float32"
    """Type of the stored weights of convolutions and matrix products of a graph. `int8`: rounded by
    MNN's converter, with a scale for each output channel. MNN computes in float with all of them.
    Packed weights keep their integers."""
    tables: Literal["float16", "int8"] | None = None
    """Type of the embedding of a packed language model, and of its head if that is not packed; by
    default `float16`. `int8` rounds them to 8 bits in blocks of 32. The report states the error."""
    parity: ConvertedParityConfig = ConvertedParityConfig()
    """Comparison with the parent that ends the pass. By default a relative error of 1e-3 is
    allowed, 0.01 with weights in float16 and for a language model, and 0.1 with 8 bits."""
