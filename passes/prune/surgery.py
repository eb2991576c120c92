"""Cuts units out of a state dict: tensors in, smaller tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compressor.models.capabilities.cuttable_axes import Axis, Cut

_AT_ONCE = 1 << 24
"""Values that are looked at together in float64."""


def units_of(tensor: Tensor, cut: Cut, units: int) -> Tensor:
    """The tensor as [units, everything else], a row for each unit."""
    rows = tensor.movedim(cut.dim, 0)
    return rows.reshape(cut.segments, units, cut.block, *rows.shape[1:]).movedim(1, 0).flatten(1)


def parts_of(cut: Cut, units: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Tensors of one shape as float64 [units, some of everything else], a part of them at a time: memory follows the part."""
    shape = tensors[0].shape
    across = next((dim for dim in range(len(shape)) if dim != cut.dim), None)
    if across is None:
        yield [units_of(one.double(), cut, units) for one in tensors]
        return
    some = max(1, _AT_ONCE * shape[across] // max(tensors[0].numel(), 1))
    for parts in zip(*(torch.split(one, some, dim=across) for one in tensors), strict=True):
        yield [units_of(part.double(), cut, units) for part in parts]


def indices_of(kept: Tensor, cut: Cut, units: int) -> Tensor:
    """The places of the ``kept`` units (int64, rising) along the dimension of a cut, in order."""
    segment, within = torch.arange(cut.segments), torch.arange(cut.block)
    return (
        segment[:, None, None] * units * cut.block + kept[None, :, None] * cut.block + within
    ).flatten()


def without(
    state: Mapping[str, Tensor], axes: Sequence[Axis], kept: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, one after another, with the units that are kept.

    Args:
        state: every tensor of the model.
        axes: the axes that are cut.
        kept: axis name to the kept units, int64, rising; axes that are not named stay whole.
    """
    cuts: dict[str, list[tuple[Axis, Cut]]] = {}
    gone: dict[str, set[int]] = {}
    for axis in axes:
        if axis.stack and axis.name in kept:
            left_out = set(range(axis.units)) - set(kept[axis.name].tolist())
            gone.setdefault(axis.stack, set()).update(axis.members(left_out))
    for axis in axes:
        if axis.name in kept:
            for cut in axis.cuts:
                cuts.setdefault(cut.tensor, []).append((axis, cut))
    for name, tensor in state.items():
        place = _place(name, gone)
        if place is None:
            continue
        for axis, cut in cuts.get(name, ()):
            indices = indices_of(kept[axis.name], cut, axis.units)
            tensor = tensor.index_select(cut.dim, indices.to(tensor.device))
        yield place, tensor.contiguous()


def _place(name: str, gone: Mapping[str, set[int]]) -> str | None:
    """Layers that stay move up to the places of those that go; None for what is of those."""
    for stack, members in gone.items():
        if name.startswith(f"{stack}."):
            layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
            before = sum(member < int(layer) for member in members)
            return None if int(layer) in members else f"{stack}.{int(layer) - before}.{rest}"
    return name
