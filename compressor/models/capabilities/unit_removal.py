"""Removal of units from a state dict.

Shapes: U units of an axis, X all other elements of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compressor.models.capabilities.cuttable_axes import Axis, Cut

_CHUNK_ELEMENTS = 1 << 24
"""Elements that are converted to float64 at a time."""


def rows_by_unit(tensor: Tensor, cut: Cut, units: int) -> Tensor:
    """Reshape a tensor to one row per unit of a cut, [U, X]."""
    rows = tensor.movedim(cut.dim, 0)
    rows = rows.narrow(0, cut.offset, cut.segments * units * cut.block)
    return rows.reshape(cut.segments, units, cut.block, *rows.shape[1:]).movedim(1, 0).flatten(1)


def iterate_rows_by_unit(cut: Cut, units: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield tensors of one shape as float64 [U, X], in chunks of X so that memory stays small."""
    shape = tensors[0].shape
    other_dim = next((dim for dim in range(len(shape)) if dim != cut.dim), None)
    if other_dim is None:
        yield [rows_by_unit(tensor.double(), cut, units) for tensor in tensors]
        return
    size = max(1, _CHUNK_ELEMENTS * shape[other_dim] // max(tensors[0].numel(), 1))
    for chunks in zip(
        *(torch.split(tensor, size, dim=other_dim) for tensor in tensors), strict=True
    ):
        yield [rows_by_unit(chunk.double(), cut, units) for chunk in chunks]


def kept_indices(kept_units: Tensor, cut: Cut, units: int) -> Tensor:
    """Return the indices of kept units along the dimension of a cut, in increasing order.

    Args:
        kept_units: units to keep, int64, increasing.
        cut: the dimension.
        units: number of units of the axis.
    """
    segment, within_block = torch.arange(cut.segments), torch.arange(cut.block)
    return (
        cut.offset
        + segment[:, None, None] * units * cut.block
        + kept_units[None, :, None] * cut.block
        + within_block
    ).flatten()


def remove_units(
    state: Mapping[str, Tensor], axes: Sequence[Axis], kept_units: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the pruned model's state dict one after another.

    Args:
        state: all tensors of the model.
        axes: the axes of the model.
        kept_units: axis name to the units to keep, int64, increasing; other axes stay whole.
    """
    cuts: dict[str, list[tuple[Axis, Cut]]] = {}
    removed_layers: dict[str, set[int]] = {}
    for axis in axes:
        if axis.stack and axis.name in kept_units:
            removed_units = set(range(axis.units)) - set(kept_units[axis.name].tolist())
            removed_layers.setdefault(axis.stack, set()).update(axis.members(removed_units))
    for axis in axes:
        if axis.name in kept_units:
            for cut in axis.cuts:
                cuts.setdefault(cut.tensor, []).append((axis, cut))
    for name, tensor in state.items():
        new_name = _renumber(name, removed_layers)
        if new_name is None:
            continue
        for dim, indices in _kept_by_dim(tensor, cuts.get(name, []), kept_units).items():
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        yield new_name, tensor.contiguous()


def _kept_by_dim(
    tensor: Tensor, cuts: Sequence[tuple[Axis, Cut]], kept_units: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    """Return the indices to keep of each dimension that holds units of cut axes."""
    kept: dict[int, Tensor] = {}
    for axis, cut in cuts:
        mask = kept.setdefault(cut.dim, torch.ones(tensor.shape[cut.dim], dtype=torch.bool))
        mask[cut.offset : cut.offset + cut.segments * axis.units * cut.block] = False
        mask[kept_indices(kept_units[axis.name], cut, axis.units)] = True
    return {dim: mask.nonzero().flatten() for dim, mask in kept.items()}


def _renumber(name: str, removed_layers: Mapping[str, set[int]]) -> str | None:
    """Return a tensor's name after the removal of layers; None if its layer is removed."""
    for stack, members in removed_layers.items():
        if name.startswith(f"{stack}."):
            layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
            removed_before = sum(member < int(layer) for member in members)
            if int(layer) in members:
                return None
            return f"{stack}.{int(layer) - removed_before}.{rest}"
    return name
