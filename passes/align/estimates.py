"""Estimates of ``align``: time, memory and disk."""

from __future__ import annotations

from dataclasses import replace

from compressor.engine.contract import Estimate
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.facts import ModelFacts
from passes.align.config import AlignConfig
from passes.common.estimates import training_estimate, training_memory

_WITH_RECOMPUTATION = 4 / 3
"""Time of a step in chunks: one more forward pass."""


def align_estimate(
    config: AlignConfig, parent: ModelFacts, teacher: ModelFacts | None = None
) -> Estimate:
    """Estimate the training; an encoder of one kind runs on two samples for each pair."""
    embeddings = parent.capability(Embeddings)
    samples = 1 if embeddings is None or embeddings.pair is not None else 2
    size = samples * config.training.batch_size
    training = config.training.model_copy(update={"batch_size": size})
    estimate = training_estimate(parent, training, teacher)
    if config.chunk_size is None or estimate.seconds is None:
        return estimate
    return replace(
        estimate,
        seconds=_WITH_RECOMPUTATION * estimate.seconds,
        peak_memory_bytes=training_memory(parent, samples * config.chunk_size),
    )
