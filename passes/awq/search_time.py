"""Estimate how long the search for scales and integers takes."""

from __future__ import annotations

from compressor.data.contract import DataFacts
from compressor.engine.contract import PlanContext
from compressor.models.capabilities.signature import Signature
from compressor.models.facts import ModelFacts
from passes.awq.config import AwqConfig
from passes.common.estimates import forward_seconds

_BASE_SECONDS = 10.0
"""Loading, discovery of groups and writing; measured on models of less than a million weights."""
_FORWARD_PASSES = 2.0
"""Cost of the search for one sample, in forward passes: measured on SmolLM2-135M."""


def search_seconds(config: AwqConfig, parent: ModelFacts, context: PlanContext) -> float | None:
    """Return the time of the pass; None if MACs or the length of the samples are not known."""
    signature = parent.capability(Signature)
    length: int | None = 1
    if signature is not None and signature.unit == "token":
        length = _tokens_per_sample(context.data.get(config.calibration.data))
    if parent.macs is None or length is None:
        return None
    per_sample = _FORWARD_PASSES if config.grouped_methods else 1.0
    passes = per_sample * length * config.calibration.num_samples
    return _BASE_SECONDS + forward_seconds(parent.macs, passes)


def _tokens_per_sample(data: DataFacts | None) -> int | None:
    """Return the length of the longest input of a data set; None if a length is not known."""
    inputs = (data.inputs or ()) if data is not None else ()
    lengths = [entry.shape[0] for entry in inputs if len(entry.shape) == 1]
    known = [length for length in lengths if length is not None]
    return max(known) if known and len(known) == len(lengths) else None
