"""Model to prune: family, architecture and module together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.config.record import Record
from compressor.models.capabilities.cuttable_axes import Axis, CuttableAxes
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.checkpoint.weights import assign_weights, weights_on_meta
from compressor.models.contract import Family


@dataclass(frozen=True, slots=True)
class PrunableModel:
    """A module with the family and the config that describe it."""

    family: Family[Any]
    config: Record
    module: nn.Module

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that can be cut.

        Raises:
            RequirementError: the model has no cuttable axes.
        """
        return self.family.require(CuttableAxes, self.config).axes

    @property
    def heads(self) -> TrainingHeads:
        """The heads whose loss is computed.

        Raises:
            RequirementError: the model has no training heads.
        """
        return self.family.require(TrainingHeads, self.config)


def load_model(artifact: Artifact, device: str) -> PrunableModel:
    """Load the model of an artifact, in eval mode."""
    description = read_description(artifact.model)
    return PrunableModel(description.family, description.config, load_module(description, device))


def build_model(
    family: Family[Any], config: Record, weights: Mapping[str, Tensor], device: str
) -> PrunableModel:
    """Build the model of a config with the given tensors, which are not copied, in eval mode."""
    with torch.random.fork_rng(devices=[]), weights_on_meta():
        module = family.build(config)
    return PrunableModel(family, config, assign_weights(module, weights).eval().to(device))
