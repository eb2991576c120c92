"""Cuttable axes of a module: its config states the shapes of the tensors that are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis, CuttableAxes
from compressor.models.capabilities.discovered_axes.verification import verified_axes
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.checkpoint.weights import assign_weights, weights_on_meta
from compressor.models.families.module.building import build_module
from compressor.models.families.module.config import ModuleConfig

_SIZES = "sizes"


def described_axes(
    axes: Sequence[Axis], config: ModuleConfig, model: LoadedModel
) -> CuttableAxes | None:
    """Return the axes whose cut equals a mask, with the fields of the shapes that they change.

    Args:
        axes: discovered axes.
        config: the config of the module.
        model: the loaded module.
    """
    shapes = {name: tuple(value.shape) for name, value in model.module.state_dict().items()}
    named = [replace(axis, dimension=axis.name, shapes_field=_SIZES) for axis in axes]
    heads = [axis for axis in named if axis.kind == "heads"]

    def build(_: Mapping[str, int], weights: Mapping[str, Tensor]) -> nn.Module:
        stated = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        changed = {name: shape for name, shape in stated.items() if shape != shapes[name]}
        smaller = config.model_copy(update={_SIZES: {**config.sizes, **changed}})
        with torch.random.fork_rng(devices=[]), weights_on_meta():
            module = build_module(smaller)
        return assign_weights(module, weights)

    kept, _ = verified_axes([axis for axis in named if axis.kind != "heads"], model, build)
    # Most modules keep the number of heads in code, which no shape changes: try one first.
    if heads and verified_axes(heads[:1], model, build)[0]:
        kept += verified_axes(heads, model, build)[0]
    return CuttableAxes(kept) if kept else None
