"""Scales of a layer's inputs, taken up by what comes before it, under which its weights round better (AWQ, Lin et al. 2024).

Shapes: I inputs, O outputs, weights [I, O].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.capabilities.linear_groups import Source
from compressor.models.quantized.description import WeightGrid
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import error

_POINTS = 20
_STEPS = (4, 2, 1)
"""Every fourth of the exponents, then what lies beside the best of them."""
_RANGES = 6
"""Ranges that are tried for each group while scales are compared."""
_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Scaling:
    """The best of the candidates."""

    scale_I: Tensor
    ratio: float
    """The exponent of the activations' mean magnitude; 0 is no scaling at all."""
    gain: float
    """The error of rounding to the nearest, in what it is without scaling."""


def search(
    weight_IO: Tensor,
    size_I: Tensor,
    gram_II: Tensor,
    magnitude_I: Tensor,
    source: Source,
    grid: WeightGrid,
    dtype: torch.dtype,
) -> Scaling:
    """Find s = x̄^r / w̄^(1−r), the best of 20 exponents r, from coarse to fine, or the identity: what does not help is not done.

    The error of a candidate is tr(DᵀHD) with D what rounding changes, undone by 1/s; no sample runs again.

    Args:
        weight_IO: of the layers that read the input; some of their outputs tell.
        size_I: mean over all their outputs of |w| in what the largest of its group is.
        gram_II: XᵀX.
        magnitude_I: mean of |x|.
        source: what takes the scale up; inputs that come from one row there share a scale.
        grid: bits, group size, symmetry.
        dtype: of the grids' scales.
    """
    activation_I = shared(magnitude_I, source).clamp(min=_FLOOR)
    size_I = shared(size_I, source).clamp(min=_FLOOR)
    found: dict[int, tuple[float, Tensor]] = {}

    def look(point: int) -> None:
        ratio = point / _POINTS
        scale_I = activation_I**ratio / size_I ** (1 - ratio) if point else torch.ones_like(size_I)
        scale_I /= (scale_I.max() * scale_I.min()).sqrt()
        found[point] = _error_under(scale_I, weight_IO, gram_II, grid, dtype), scale_I

    best = 0
    for step in _STEPS:
        near = range(0, _POINTS, step) if not found else (best - step, best + step)
        for point in near:
            if point not in found and 0 <= point < _POINTS:
                look(point)
        best = min(found, key=lambda point: found[point][0])
    return Scaling(found[best][1], best / _POINTS, found[best][0] / max(found[0][0], _FLOOR**8))


def shared(value_I: Tensor, source: Source) -> Tensor:
    """The mean over inputs that come from one row of ``source``, [I] again."""
    if source.repeats == 1:
        return value_I
    blocks = value_I.view(-1, source.repeats, source.block)
    return blocks.mean(dim=1, keepdim=True).expand_as(blocks).reshape(-1)


def of_rows(scale_I: Tensor, source: Source) -> Tensor:
    """One value for each row of ``source``."""
    return (
        scale_I.view(-1, source.repeats, source.block)[:, 0].reshape(-1)
        if source.repeats > 1
        else scale_I
    )


def _error_under(
    scale_I: Tensor, weight_IO: Tensor, gram_II: Tensor, grid: WeightGrid, dtype: torch.dtype
) -> float:
    scaled_IO = weight_IO * scale_I.unsqueeze(1)
    grids = group_grids(
        scaled_IO, gram_II.diagonal() / scale_I.square(), grid, dtype, candidates=_RANGES
    )
    back_IO = nearest(scaled_IO, *grids, grid.highest) / scale_I.unsqueeze(1)
    return float(error(gram_II, back_IO.sub_(weight_IO)).sum())


def relative_size(weight_IO: Tensor, width: int) -> Tensor:
    """Mean over outputs of |w| in what the largest of its group is, [I]."""
    size_GSO = weight_IO.abs().view(-1, width, weight_IO.shape[1])
    return (size_GSO / size_GSO.amax(dim=1, keepdim=True).clamp(min=_FLOOR)).mean(dim=2).flatten()
