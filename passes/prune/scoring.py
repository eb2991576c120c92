"""Scores of units and layers on calibration samples, as the config selects them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.samples import Samples
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.training_heads import TrainingHeads
from passes.common.device import device_of, tensors_from_batch
from passes.common.losses import hard_cross_entropy
from passes.prune.config import PruneConfig
from passes.prune.importance import (
    Scores,
    score_by_activation,
    score_by_entropy,
    score_by_gradient,
    score_by_magnitude,
    score_by_taylor,
)
from passes.prune.layer_importance import (
    score_layers_by_cosine,
    score_layers_by_loss,
    score_layers_by_taylor,
    score_layers_by_weight,
)
from passes.prune.model import PrunableModel

_UNIT_SCORERS = {"activation": score_by_activation, "entropy": score_by_entropy}
_UNIT_SCORERS_BY_LOSS = {"gradient": score_by_gradient, "taylor": score_by_taylor}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration samples, and the loss of a model on them."""

    heads: TrainingHeads | None
    """None if no loss is computed."""
    module: nn.Module
    dataset: Dataset
    config: PruneConfig
    context: PassContext

    def batches(self, activity: str) -> Iterator[dict[str, Tensor]]:
        """Yield ``num_samples`` samples, spread evenly over the set; report as ``activity``."""
        samples = Samples(
            self.dataset,
            count=self.config.num_samples,
            batch_size=self.config.batch_size,
            progress=lambda label, done, total: self.context.progress(label, done, total, {}),
        )
        for batch in samples.batches(activity):
            yield tensors_from_batch(batch, device_of(self.module))

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of the model."""
        outputs: dict[str, Tensor] = self.module(
            **{name: batch[name] for name in self.dataset.input_names}
        )
        return outputs

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy with the labels, summed over the model's heads."""
        assert self.heads is not None  # noqa: S101 - `needs` asks for them
        losses = hard_cross_entropy(self.heads.logits(self.module, self.run(batch)), batch)
        return torch.stack(list(losses.values())).sum()


def open_calibration(
    config: PruneConfig, model: PrunableModel, context: PassContext
) -> Calibration | None:
    """Open the calibration set for a model; None if the config names none."""
    if config.calibration is None:
        return None
    dataset = context.data(config.calibration)
    heads = None if config.loss_field is None else model.heads
    return Calibration(heads, model.module, dataset, config, context)


def score_axes(
    config: PruneConfig, module: nn.Module, axes: Sequence[Axis], calibration: Calibration | None
) -> Scores:
    """Return the importance of the units of each axis, float64 [units] on the CPU.

    Args:
        config: selects the scores of units and layers.
        module: the model.
        axes: the axes to score.
        calibration: the samples; without them units and layers are scored by their weights.
    """
    scores = _score(config, module, axes, calibration)
    return {name: score.cpu() for name, score in scores.items()}


def _score(
    config: PruneConfig, module: nn.Module, axes: Sequence[Axis], calibration: Calibration | None
) -> Scores:
    stacks = [axis for axis in axes if axis.stack]
    inner_axes = [axis for axis in axes if not axis.stack]
    if calibration is None:
        return score_by_magnitude(module, inner_axes) | score_layers_by_weight(module, stacks)
    scores: Scores = {}
    if inner_axes and config.importance == "magnitude":
        scores |= score_by_magnitude(module, inner_axes)
    elif inner_axes and config.importance in _UNIT_SCORERS:
        scores |= _UNIT_SCORERS[config.importance](
            module, inner_axes, calibration.batches("score"), calibration.run
        )
    elif inner_axes:
        scores |= _UNIT_SCORERS_BY_LOSS[config.importance](
            module, inner_axes, calibration.batches("score"), calibration.loss
        )
    # Scores of layers and of units are compared, so by default they have the same scale.
    compared = config.importance == "taylor" and bool(inner_axes)
    layer_importance = config.layer_importance or ("taylor" if compared else "cosine")
    return scores | _score_layers(layer_importance, module, stacks, calibration)


def _score_layers(
    importance: str, module: nn.Module, stacks: Sequence[Axis], calibration: Calibration
) -> Scores:
    """Return the importance of the layers of each stack."""
    if not stacks:
        return {}
    if importance == "loss":
        return score_layers_by_loss(module, stacks, calibration.batches, calibration.loss)
    batches = calibration.batches("score layers")
    if importance == "cosine":
        return score_layers_by_cosine(module, stacks, batches, calibration.run)
    return score_layers_by_taylor(module, stacks, batches, calibration.loss)
