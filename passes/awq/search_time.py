"""Estimate how long the search for scales and integers takes."""

from __future__ import annotations

from compressor.engine.contract import PlanContext
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import ModelFacts
from passes.awq.config import AwqConfig
from passes.common.estimates import forward_seconds, positions_per_sample

_TRANSFORMERS = "transformers"
"""Name of the family."""
_BASE_SECONDS = 8.0
"""Loading, discovery of groups and writing; measured on models of less than a million weights."""
_TRANSFORMERS_SECONDS = 2.0
"""Import of transformers, for its models alone."""
_FORWARD_PASSES = 2.0
"""Cost of the search for one sample, in forward passes, where layers run one at a time: measured on
SmolLM2-135M."""
_PASSES_PER_BLOCK = 3.0
"""Cost of the search in one block for one sample, in forward passes, where each block runs the
whole model: in float, before and after its quantization."""


def search_seconds(config: AwqConfig, parent: ModelFacts, context: PlanContext) -> float | None:
    """Return the time of the pass; None if MACs or the length of the samples are not known."""
    length = positions_per_sample(parent, context.data.get(config.calibration.data))
    if parent.macs is None or length is None:
        return None
    passes = _passes_per_sample(config, parent) * length * config.calibration.num_samples
    base = _BASE_SECONDS + (_TRANSFORMERS_SECONDS if parent.family == _TRANSFORMERS else 0.0)
    return base + forward_seconds(parent.macs, passes)


def _passes_per_sample(config: AwqConfig, parent: ModelFacts) -> float:
    """Return the cost of the search for one sample, in forward passes."""
    if not config.grouped_methods:
        return 1.0
    groups = parent.capability(LinearGroups)
    if groups is None or parent.capability(StreamedLayers) is not None:
        return _FORWARD_PASSES
    return _PASSES_PER_BLOCK * len(groups.blocks)
