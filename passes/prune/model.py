"""Model to prune: family, architecture and module together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.artifacts.artifact import Artifact
from compressor.config.record import Record
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis, CuttableAxes
from compressor.models.capabilities.discovery import discover
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.signature import Signature
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.checkpoint.weights import assign_weights, weights_on_meta
from compressor.models.contract import Family
from compressor.models.families.transformers.generic.sample import sample_batch
from passes.common.device import tensors_from_batch

_SAMPLES = 2
"""Samples to discover axes with."""


@dataclass(frozen=True)
class PrunableModel:
    """A module with the family and the config that describe it."""

    family: Family[Any]
    config: Record
    module: nn.Module
    batch: Mapping[str, Tensor]
    """Inputs to run the module with where its axes are discovered; empty where they are stated."""

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that can be cut.

        Raises:
            RequirementError: the model has no cuttable axes.
        """
        if not self.batch:
            return self.family.require(CuttableAxes, self.config).axes
        loaded = LoadedModel(self.module, self.batch)
        capability = self.family.capability(CuttableAxes, self.config, loaded)
        if capability is None:
            raise RequirementError(
                f"nothing of this model can be cut: {_reason(loaded)}",
                remedy="make the model smaller by `distill` into a student, or compress it by "
                "`qat` or `awq`",
            )
        return capability.axes

    @property
    def heads(self) -> TrainingHeads:
        """The heads whose loss is computed.

        Raises:
            RequirementError: the model has no training heads.
        """
        return self.family.require(TrainingHeads, self.config)


def _reason(model: LoadedModel) -> str:
    """Return why a model has no axes that can be cut."""
    found = discover(CuttableAxes, model)
    if found is None or not found.axes:
        return (
            "its layers cannot be left out, and each width is normalized as a whole (layer norm, "
            "global response norm), returned, or fixed by the code"
        )
    return (
        f"no field of its config states the size of {len(found.axes)} channels, inner widths or "
        f"heads, such as {found.axes[0].name}, or a smaller model has other outputs"
    )


def load_model(artifact: Artifact, calibration: str | None, context: PassContext) -> PrunableModel:
    """Load the model of an artifact, in eval mode.

    Args:
        artifact: the parent of the step.
        calibration: the data set whose first samples a model is run with to discover its axes;
            None for random inputs.
        context: the context of the pass.
    """
    context.progress("load the model", 0, 1, {})
    description = read_description(artifact.model)
    module = load_module(description, context.device)
    family, config = description.family, description.config
    batch: Mapping[str, Tensor] = {}
    is_stated = family.capability(CuttableAxes, config) is not None
    if not is_stated and family.can_discover(CuttableAxes, config):
        batch = _sample(family.signature(config), calibration, context)
        context.progress("find what can be cut", 0, 1, {})
    return PrunableModel(family, config, module, batch)


def _sample(
    signature: Signature, calibration: str | None, context: PassContext
) -> dict[str, Tensor]:
    """Return two samples of the calibration set, or random ones."""
    device = torch.device(context.device)
    if calibration is None:
        return sample_batch(signature.inputs, device=context.device)
    dataset = context.data(calibration)
    indices = np.arange(min(len(dataset), _SAMPLES), dtype=np.int64)
    batch = tensors_from_batch(dataset.batch(indices), device)
    return {name: batch[name] for name in dataset.input_names}


def build_model(
    parent: PrunableModel, config: Record, weights: Mapping[str, Tensor], device: str
) -> PrunableModel:
    """Build a smaller model with the given tensors, which are not copied, in eval mode.

    Args:
        parent: the model that was cut.
        config: the config of the smaller model.
        weights: its state dict.
        device: the device of the module.
    """
    with torch.random.fork_rng(devices=[]), weights_on_meta():
        module = parent.family.build(config)
    module = assign_weights(module, weights).eval().to(device)
    return replace(parent, config=config, module=module)
