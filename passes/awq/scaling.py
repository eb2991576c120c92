"""Scales of a layer's inputs, taken up by what comes before it, under which its weights round better (AWQ, Lin et al. 2024).

Shapes: I inputs, O outputs, weights [I, O].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.packed.description import WeightGrid
from compressor.models.transformers_checkpoint.linears import Source
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import error

_POINTS = 20
_OUTPUTS = 256
"""Outputs on which candidates are compared; each adds to the error on its own, so a part of them tells."""
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
    weight_IO: Tensor, gram_II: Tensor, magnitude_I: Tensor, source: Source, grid: WeightGrid, dtype: torch.dtype
) -> Scaling:
    """Find s = x̄^r / w̄^(1−r), the best of 20 exponents r, the identity among them: what does not help is not done.

    The error of a candidate is tr(DᵀHD) with D what rounding changes, undone by 1/s; no sample runs again.

    Args:
        weight_IO: of all layers that read the input.
        gram_II: XᵀX.
        magnitude_I: mean of |x|.
        source: what takes the scale up; inputs that come from one row there share a scale.
        grid: bits, group size, symmetry.
        dtype: of the grids' scales.
    """
    inputs, outputs = weight_IO.shape
    some_IO = weight_IO[:, torch.arange(min(outputs, _OUTPUTS)) * outputs // min(outputs, _OUTPUTS)].contiguous()
    activation_I = shared(magnitude_I, source).clamp(min=_FLOOR)
    size_I = shared(_relative_size(weight_IO, grid.width(inputs)), source).clamp(min=_FLOOR)
    identity = torch.ones(inputs)
    first = best = _error_under(identity, some_IO, gram_II, grid, dtype)
    chosen = Scaling(identity, 0.0, 1.0)
    for point in range(1, _POINTS):
        ratio = point / _POINTS
        scale_I = activation_I**ratio / size_I ** (1 - ratio)
        scale_I /= (scale_I.max() * scale_I.min()).sqrt()
        found = _error_under(scale_I, some_IO, gram_II, grid, dtype)
        if found < best:
            best, chosen = found, Scaling(scale_I, ratio, found / first)
    return chosen


def shared(value_I: Tensor, source: Source) -> Tensor:
    """The mean over inputs that come from one row of ``source``, [I] again."""
    if source.repeats == 1:
        return value_I
    blocks = value_I.view(-1, source.repeats, source.block)
    return blocks.mean(dim=1, keepdim=True).expand_as(blocks).reshape(-1)


def of_rows(scale_I: Tensor, source: Source) -> Tensor:
    """One value for each row of ``source``."""
    return scale_I.view(-1, source.repeats, source.block)[:, 0].reshape(-1) if source.repeats > 1 else scale_I


def _error_under(scale_I: Tensor, weight_IO: Tensor, gram_II: Tensor, grid: WeightGrid, dtype: torch.dtype) -> float:
    scaled_IO = weight_IO * scale_I.unsqueeze(1)
    grids = group_grids(scaled_IO, gram_II.diagonal() / scale_I.square(), grid, dtype, candidates=_RANGES)
    back_IO = nearest(scaled_IO, *grids, grid.highest) / scale_I.unsqueeze(1)
    return error(gram_II, back_IO.sub_(weight_IO))


def _relative_size(weight_IO: Tensor, width: int) -> Tensor:
    """Mean over outputs of |w| in what the largest of its group is."""
    size_GSO = weight_IO.abs().view(-1, width, weight_IO.shape[1])
    return (size_GSO / size_GSO.amax(dim=1, keepdim=True).clamp(min=_FLOOR)).mean(dim=2).flatten()
