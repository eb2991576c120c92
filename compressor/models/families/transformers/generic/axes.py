"""Cuttable axes of any class: what a smaller config describes, compared with a masked model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import (
    Axis,
    CuttableAxes,
    FieldPath,
)
from compressor.models.capabilities.discovered_axes.verification import removed_part, verified_axes
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.checkpoint.weights import assign_weights
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.generic.axis_fields import (
    FieldProbe,
    axes_with_fields,
    with_fields,
)
from compressor.models.families.transformers.generic.layer_fields import layer_axes
from compressor.models.families.transformers.modules import build_on_meta


def described_axes(
    axes: Sequence[Axis], config: CheckpointConfig, model: LoadedModel
) -> CuttableAxes | None:
    """Return the axes that config.json describes and whose cut equals a mask; None for none.

    Args:
        axes: discovered axes, without layers.
        config: the config of the model.
        model: the loaded model.
    """
    probe = FieldProbe(config.tree)
    alternatives = axes_with_fields(axes, probe)
    layers = list(layer_axes(probe))
    kept = list(_verified(layers, config, model))
    while alternatives:
        tried = [options.pop(0) for options in alternatives.values()]
        verified = _verified(tried, config, model)
        kept += verified
        done = {axis.name for axis in verified}
        alternatives = {
            name: options for name, options in alternatives.items() if options and name not in done
        }
    return CuttableAxes(tuple(kept)) if kept else None


def _verified(
    axes: Sequence[Axis], config: CheckpointConfig, model: LoadedModel
) -> tuple[Axis, ...]:
    """Return the axes whose smaller class, built from its config, equals a masked model."""

    def build(sizes: Mapping[str, int], weights: Mapping[str, Tensor]) -> nn.Module:
        fields: dict[FieldPath, Any] = {}
        for axis in (axis for axis in axes if axis.name in sizes):
            fields |= axis.field_values(sizes[axis.name])
            fields |= dict(axis.pinned)
            for path in axis.unit_lists:
                fields[path] = _shortened(config, path, axis)
        smaller = with_fields(config.tree, fields)
        return assign_weights(build_on_meta(smaller), weights)

    return verified_axes(axes, model, build)[0]


def _shortened(config: CheckpointConfig, path: FieldPath, axis: Axis) -> list[Any]:
    """Return the list of the layers that a trial keeps."""
    values: Any = config.tree
    for part in path:
        values = values[part]
    return [values[unit] for unit in removed_part([axis])[axis.name].tolist()]
