"""Estimate how long an export takes: tracing, comparison with torch, and files."""

from __future__ import annotations

from compressor.engine.contract import PlanContext
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.facts import ModelFacts
from passes.common.estimates import forward_seconds, positions_per_sample
from passes.export_onnx.config import ExportOnnxConfig

_COMPARISON_PASSES = 2
"""Forward passes of each compared sample: in torch and in ONNX Runtime."""
_WINDOWS = 4
_SAMPLES = 64
"""Compared samples by default, as `parity.num_samples` documents."""
_TYPICAL_POSITIONS = 512
"""Positions of a sample whose length is not known."""
_SECONDS_PER_BYTE = 12e-9
"""Reading, writing and checking of the weights, by this pass, torch and ONNX Runtime: measured on
built decoders of 0.14, 0.54 and 1.34 GB."""
_SECONDS_PER_BYTE_AND_WINDOW = 5e-9
"""Calibration of an 8-bit cache on one window."""


def export_seconds(
    config: ExportOnnxConfig,
    parent: ModelFacts,
    context: PlanContext,
    *,
    start_seconds: float,
    weight_bytes: int,
) -> float:
    """Return the time of the pass.

    Args:
        config: the config of the pass.
        parent: the model.
        context: facts of the data sets.
        start_seconds: time of exporting and comparing a small model.
        weight_bytes: bytes of the weights in the graph.
    """
    parity, calibration = config.parity, config.decoder.int8_kv_cache
    positions = positions_per_sample(parent, context.data.get(parity.data))
    generates = parent.capability(CachedGeneration) is not None
    samples = parity.num_samples or (_WINDOWS if generates else _SAMPLES)
    compared = _COMPARISON_PASSES * samples * (positions or _TYPICAL_POSITIONS)
    windows = 0 if calibration is None else calibration.num_samples
    per_byte = _SECONDS_PER_BYTE + windows * _SECONDS_PER_BYTE_AND_WINDOW
    return start_seconds + per_byte * weight_bytes + forward_seconds(parent.macs or 0, compared)
