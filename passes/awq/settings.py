"""Settings of a run, resolved from the config and the parent's dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from compressor.models.quantized.packed_formats import PACKED_FORMATS, PackedFormat
from passes.awq.config import AwqConfig
from passes.common.weight_rounding.grids import ScaleFormat


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """Methods and dtypes with which every layer of a model is quantized."""

    format: PackedFormat
    """Layout of packed layers in the checkpoint."""
    scale_format: ScaleFormat
    """Scales that the file can hold, of 16 bits."""
    float_dtype: torch.dtype
    """dtype of the tensors that are not packed. They are rounded to it before the layers that
    follow are calibrated."""
    scaling: bool
    """True to search for AWQ scales."""
    gptq: bool
    """True to round with GPTQ, False to round to nearest."""
    error_compensation: float
    """Fraction of the error of earlier layers that weights compensate."""

    def nearest(self) -> QuantizationSettings:
        """Return settings that round to nearest and do nothing else."""
        return replace(self, scaling=False, gptq=False, error_compensation=0.0)

    @classmethod
    def of(cls, config: AwqConfig, parent_dtype: torch.dtype) -> QuantizationSettings:
        """Return the settings for a parent whose weights are stored with ``parent_dtype``."""
        if config.dtype is not None:
            float_dtype: torch.dtype = getattr(torch, config.dtype)
        else:
            float_dtype = torch.float16 if config.format == "awq" else parent_dtype
        uses_float16 = config.format == "awq" or float_dtype == torch.float32
        return cls(
            PACKED_FORMATS[config.format],
            ScaleFormat(torch.float16 if uses_float16 else float_dtype, config.gguf_scales),
            float_dtype,
            config.scaling,
            config.refine == "gptq",
            config.error_compensation,
        )
