"""The importance of every unit, as the config asks for it, on real samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.samples import Samples
from compressor.config.record import Record
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.contract import Family
from passes.common.device import device_of, tensors_from_batch
from passes.common.losses import hard_cross_entropy
from passes.prune.depth import layers_by_cosine, layers_by_loss, layers_by_taylor, layers_by_weight
from passes.prune.importance import Scores, activation, entropy, gradient, magnitude, taylor
from passes.prune.step import PruneConfig

_OF_UNITS = {"activation": activation, "entropy": entropy, "gradient": gradient, "taylor": taylor}
_OF_LAYERS = {"cosine": layers_by_cosine, "taylor": layers_by_taylor}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples, and the loss of a model on them."""

    heads: TrainingHeads
    module: nn.Module
    dataset: Dataset
    config: PruneConfig
    context: PassContext

    def batches(self, what: str) -> Iterator[dict[str, Tensor]]:
        """``num_samples`` of the set, evenly over all of it; progress is told as ``what``."""
        samples = Samples(
            self.dataset,
            count=self.config.num_samples,
            batch_size=self.config.batch_size,
            progress=lambda what, done, total: self.context.progress(what, done, total, {}),
        )
        for batch in samples.batches(what):
            yield tensors_from_batch(batch, device_of(self.module))

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum over the family's heads of the mean cross-entropy with the labels of a batch."""
        outputs = self.module(**{name: batch[name] for name in self.dataset.input_names})
        return torch.stack(
            list(hard_cross_entropy(self.heads.logits(self.module, outputs), batch).values())
        ).sum()


def opened_calibration(
    config: PruneConfig,
    family: Family[Any],
    architecture: Record,
    module: nn.Module,
    context: PassContext,
) -> Calibration | None:
    """The set that the config names, if it does; ``requires`` has asked whether it fits."""
    if config.calibration is None:
        return None
    heads = family.require(TrainingHeads, architecture)
    return Calibration(heads, module, context.data(config.calibration), config, context)


def scored(
    config: PruneConfig, module: nn.Module, axes: Sequence[Axis], calibration: Calibration | None
) -> Scores:
    """Axis name to the importance of its units, float64 [units] on the CPU."""
    stacks = [axis for axis in axes if axis.stack]
    others = [axis for axis in axes if not axis.stack]
    compares = config.importance == "taylor" and bool(
        others
    )  # scores of layers and of units then have one scale
    of_layers = config.layer_importance or ("taylor" if compares else "cosine")
    if calibration is None:
        return magnitude(module, others) | layers_by_weight(module, stacks)
    scores: Scores = {}
    if others and config.importance == "magnitude":
        scores |= magnitude(module, others)
    elif others:
        scores |= _OF_UNITS[config.importance](
            module, others, calibration.batches("score"), calibration.loss
        )
    if stacks and of_layers == "loss":
        scores |= layers_by_loss(module, stacks, calibration.batches, calibration.loss)
    elif stacks:
        scores |= _OF_LAYERS[of_layers](
            module, stacks, calibration.batches("score layers"), calibration.loss
        )
    return {name: score.cpu() for name, score in scores.items()}
