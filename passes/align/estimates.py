"""Estimates of ``align``: time, memory and disk."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from compressor.data.contract import DataFacts
from compressor.engine.contract import Estimate
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.facts import ModelFacts
from passes.align.config import AlignConfig
from passes.common.estimates import training_estimate, training_memory

_WITH_RECOMPUTATION = 4 / 3
"""Time of a step in chunks: one more forward pass."""
_COUNTED_TOKENS = 128
"""Tokens of the texts for which MACs are counted, where the config has no field ``tokens``."""


def align_estimate(
    config: AlignConfig,
    parent: ModelFacts,
    teacher: ModelFacts | None = None,
    data: DataFacts | None = None,
) -> Estimate:
    """Estimate the training; an encoder of one kind runs on two samples for each pair.

    Args:
        config: of the pass.
        parent: the model that is trained.
        teacher: runs on the same batches.
        data: the data set to train on, whose texts may be shorter than those of the MACs.
    """
    share = _samples_per_pair(parent, data)
    size = ceil(share * config.training.batch_size)
    training = config.training.model_copy(update={"batch_size": size})
    estimate = training_estimate(parent, training, teacher)
    if config.chunk_size is None or estimate.seconds is None:
        return estimate
    return replace(
        estimate,
        seconds=_WITH_RECOMPUTATION * estimate.seconds,
        peak_memory_bytes=training_memory(parent, ceil(share * config.chunk_size)),
    )


def _samples_per_pair(parent: ModelFacts, data: DataFacts | None) -> float:
    """Return the forward passes for each pair, in samples of the size that MACs are counted for."""
    embeddings = parent.capability(Embeddings)
    if embeddings is None or embeddings.pair is not None:
        return 1.0
    inputs = () if data is None else data.inputs or ()
    lengths = [entry.shape[0] for entry in inputs if entry.dtype == "int64" and entry.shape]
    longest = max((length for length in lengths if length is not None), default=None)
    counted = (parent.config or {}).get("tokens", _COUNTED_TOKENS)
    return 2.0 if longest is None else 2.0 * longest / counted
