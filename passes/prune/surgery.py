"""Cuts units out of a state dict: tensors in, smaller tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compressor.models.axes import Axis, Cut


def units_of(tensor: Tensor, cut: Cut, units: int) -> Tensor:
    """The tensor as [units, everything else], a row for each unit."""
    rows = tensor.movedim(cut.dim, 0)
    return rows.reshape(cut.segments, units, cut.block, *rows.shape[1:]).movedim(1, 0).flatten(1)


def indices_of(kept: Tensor, cut: Cut, units: int) -> Tensor:
    """The places of the ``kept`` units (int64, rising) along the dimension of a cut, in order."""
    segment, within = torch.arange(cut.segments), torch.arange(cut.block)
    return (segment[:, None, None] * units * cut.block + kept[None, :, None] * cut.block + within).flatten()


def without(state: Mapping[str, Tensor], axes: Sequence[Axis], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the units that are kept.

    Args:
        state: every tensor of the model.
        axes: the axes that are cut.
        kept: axis name to the kept units, int64, rising; axes that are not named stay whole.
    """
    smaller = dict(state)
    for axis in axes:
        if axis.name not in kept:
            continue
        for cut in axis.cuts:
            indices = indices_of(kept[axis.name], cut, axis.units)
            whole = smaller[cut.tensor]
            smaller[cut.tensor] = whole.index_select(cut.dim, indices.to(whole.device))
    for axis in axes:
        if axis.stack and axis.name in kept:
            smaller = _without_layers(smaller, axis.stack, kept[axis.name].tolist())
    return {name: tensor.contiguous() for name, tensor in smaller.items()}


def _without_layers(state: Mapping[str, Tensor], stack: str, kept: list[int]) -> dict[str, Tensor]:
    """Layers that stay move up to the places of those that go."""
    place = {f"{layer}": f"{number}" for number, layer in enumerate(kept)}
    left = {}
    for name, tensor in state.items():
        if not name.startswith(f"{stack}."):
            left[name] = tensor
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if layer in place:
            left[f"{stack}.{place[layer]}.{rest}"] = tensor
    return left
