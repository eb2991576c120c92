"""The importance of every unit and layer of a model, by the measure that the config names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.engine.contract import PassContext
from compressor.errors import DataError
from compressor.models.axes import Axis
from compressor.models.contract import Family
from passes.common.accuracy import device_of, tensors_from_batch
from passes.common.losses import hard_cross_entropy
from passes.prune.depth import layers_by_cosine, layers_by_taylor, layers_by_weight
from passes.prune.importance import Scores, activation, entropy, gradient, magnitude, taylor
from passes.prune.step import PruneConfig


def scores_of(
    config: PruneConfig, family: Family[Any], module: nn.Module, axes: Sequence[Axis], context: PassContext
) -> Scores:
    """Axis name to the score of each unit, float64 [units].

    Raises:
        DataError: the calibration set is empty.
    """
    scores = (
        _by_weights(module, axes)
        if config.importance == "magnitude"
        else _by_samples(config, family, module, axes, context)
    )
    return {name: score.cpu() for name, score in scores.items()}


def _by_weights(module: nn.Module, axes: Sequence[Axis]) -> Scores:
    return magnitude(module, [axis for axis in axes if not axis.stack]) | layers_by_weight(
        module, [axis for axis in axes if axis.stack]
    )


def _by_samples(
    config: PruneConfig, family: Family[Any], module: nn.Module, axes: Sequence[Axis], context: PassContext
) -> Scores:
    dataset = context.data(str(config.calibration))
    total = min(config.num_samples, len(dataset))
    if total == 0:
        raise DataError(f"data set {config.calibration!r} is empty")
    device = device_of(module)

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, total, config.batch_size):
            indices = np.arange(start, min(start + config.batch_size, total), dtype=np.int64)
            yield tensors_from_batch(dataset.batch(indices), device)
            context.progress("sample", start + len(indices), total, {})

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        outputs = module(**{name: batch[name] for name in dataset.input_names})
        return torch.stack(list(hard_cross_entropy(family.heads(module, outputs), batch).values())).sum()

    stacks = [axis for axis in axes if axis.stack]
    units = [axis for axis in axes if not axis.stack]
    score = {"activation": activation, "entropy": entropy, "gradient": gradient, "taylor": taylor}[config.importance]
    scores = score(module, units, batches(), loss) if units else {}
    if stacks:
        of_layers = layers_by_taylor if config.importance == "taylor" else layers_by_cosine
        scores |= of_layers(module, stacks, batches(), loss)
    return scores
