"""Scales and zero-points of groups of weights.

Shapes: I inputs, O outputs, G groups of S inputs. Weights are [I, O], so that the weights of an
input are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.models.quantized.weight_grid import WeightGrid

_NARROWEST = 0.5
"""Smallest candidate range, as a fraction of the whole range of a group."""
_CHUNK_WEIGHTS = 1 << 18
"""Number of weights that are searched together: they fit into a processor's cache."""
_MIN_HALF_SCALE = 2.0**-24
"""Smallest positive float16."""
_SAFE_BITS, _FLOAT16_BITS = 7, 11
"""Significant bits of a scale whose product with any zero-point of 4 bits is a float16, and those
of a float16."""


@dataclass(frozen=True, slots=True)
class ScaleFormat:
    """Scales that a file can hold."""

    dtype: torch.dtype
    """Their dtype in the checkpoint."""
    gguf: bool = False
    """True for blocks of GGUF, which hold scale · zero-point in float16 too. Scales of symmetric
    groups may be negative then."""

    @property
    def smallest(self) -> float:
        """The smallest positive scale: of types of 32 bits' range the smallest with all digits."""
        return _MIN_HALF_SCALE if self.dtype == torch.float16 else torch.finfo(self.dtype).tiny

    def round(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Return the nearest scales that the file can hold beside the zero-points, as float32."""
        if not self.gguf:
            return scale.to(self.dtype).float()
        rounded = _to_bits(scale, _SAFE_BITS).half().float()
        # Most zero-points leave room for more bits: 8, for example, for all that float16 has.
        for bits in range(_SAFE_BITS + 1, _FLOAT16_BITS + 1):
            finer = _to_bits(scale, bits).to(self.dtype).float()
            fits = _is_float16(finer) & _is_float16(finer * zero)
            rounded = torch.where(fits, finer, rounded)
        return rounded


def _to_bits(values: Tensor, bits: int) -> Tensor:
    """Round to a number of significant bits."""
    fraction, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(fraction * 2.0**bits) * 2.0**-bits, exponent)


def _is_float16(values: Tensor) -> Tensor:
    return values.half().float() == values


@dataclass(frozen=True, slots=True)
class GroupGrids:
    """Scales and zero-points of all groups of a weight matrix: w ≈ (q − z) · s."""

    scale_GO: Tensor
    """float32 values that ``scale_format`` holds exactly."""
    zero_GO: Tensor
    """float32 integers."""
    grid: WeightGrid
    scale_format: ScaleFormat
    """Scales that the file can hold."""


def search_grids(
    weight_IO: Tensor,
    importance_I: Tensor,
    grid: WeightGrid,
    scale_format: ScaleFormat,
    candidates: int = 20,
) -> GroupGrids:
    """Find the grids with the least Σ importance · (rounded − weight)².

    Candidate ranges reach from the whole range of a group to half of it.

    Args:
        weight_IO: float32.
        importance_I: weight of each input's error, such as its second moment.
        grid: bits, group size and symmetry.
        scale_format: scales that the file can hold; candidates are rounded to it first.
        candidates: number of ranges to try; 1 tries the whole range alone.
    """
    inputs, outputs = weight_IO.shape
    weight_GSO = weight_IO.view(-1, grid.width(inputs), outputs)
    importance_GS1 = importance_I.view(len(weight_GSO), -1, 1)
    groups = max(1, _CHUNK_WEIGHTS // (weight_GSO.shape[1] * outputs))
    chunks = zip(torch.split(weight_GSO, groups), torch.split(importance_GS1, groups), strict=True)
    scales, zeros = zip(
        *(_search_chunk(*chunk, grid, scale_format, candidates) for chunk in chunks), strict=True
    )
    return GroupGrids(torch.cat(scales), torch.cat(zeros), grid, scale_format)


def _search_chunk(
    weight_GSO: Tensor,
    importance_GS1: Tensor,
    grid: WeightGrid,
    scale_format: ScaleFormat,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """Return the best scales and zero-points of some groups, [G, O] each."""
    low_GO, high_GO = weight_GSO.amin(dim=1).clamp(max=0), weight_GSO.amax(dim=1).clamp(min=0)
    sign_GO = None
    if grid.symmetric:
        if scale_format.gguf:
            sign_GO = torch.where(high_GO > -low_GO, -1.0, 1.0)
        high_GO = torch.maximum(-low_GO, high_GO)
        low_GO = -high_GO
    best_error_GO = torch.full_like(low_GO, torch.inf)
    best_scale_GO, best_zero_GO = torch.empty_like(low_GO), torch.empty_like(low_GO)
    ranges = torch.linspace(1.0, _NARROWEST, candidates).tolist() if candidates > 1 else [1.0]
    for fraction in ranges:
        scale_GO, zero_GO = _candidate(low_GO, high_GO, sign_GO, fraction, grid, scale_format)
        rounded_GSO = _round(weight_GSO, scale_GO.unsqueeze(1), zero_GO.unsqueeze(1), grid.highest)
        error_GSO = rounded_GSO.sub_(weight_GSO).square_().mul_(importance_GS1)
        error_GO = error_GSO.sum(dim=1)
        is_better_GO = error_GO < best_error_GO
        best_error_GO = torch.where(is_better_GO, error_GO, best_error_GO)
        best_scale_GO = torch.where(is_better_GO, scale_GO, best_scale_GO)
        best_zero_GO = torch.where(is_better_GO, zero_GO, best_zero_GO)
    return best_scale_GO, best_zero_GO


def _candidate(
    low_GO: Tensor,
    high_GO: Tensor,
    sign_GO: Tensor | None,
    fraction: float,
    grid: WeightGrid,
    scale_format: ScaleFormat,
) -> tuple[Tensor, Tensor]:
    """Return the scales and zero-points of a fraction of the range of each group."""
    steps = grid.highest if sign_GO is None else 2 * grid.middle
    scale_GO = ((high_GO - low_GO) * (fraction / steps)).to(scale_format.dtype).float()
    scale_GO = scale_GO.clamp(min=scale_format.smallest)
    scale_GO = scale_GO.where(high_GO > low_GO, _MIN_HALF_SCALE)  # a group of zeros
    if sign_GO is not None:  # the negative end has one integer more: give it the longer side
        scale_GO = scale_GO * sign_GO
    if grid.symmetric:
        zero_GO = torch.full_like(scale_GO, grid.middle)
    else:
        zero_GO = (-low_GO * fraction / scale_GO).round_().clamp_(0, grid.highest)
    return scale_format.round(scale_GO, zero_GO), zero_GO


def round_to_nearest(weight_IO: Tensor, grids: GroupGrids) -> Tensor:
    """Return the value on its grid that is nearest to each weight, [I, O]."""
    weight_GSO = weight_IO.view(len(grids.scale_GO), -1, weight_IO.shape[1])
    scale_G1O, zero_G1O = grids.scale_GO.unsqueeze(1), grids.zero_GO.unsqueeze(1)
    return _round(weight_GSO, scale_G1O, zero_G1O, grids.grid.highest).view_as(weight_IO)


def round_row(weight_O: Tensor, scale_O: Tensor, zero_O: Tensor, highest: int) -> Tensor:
    """Return the value on its grid that is nearest to each weight of one input, [O]."""
    return _round(weight_O, scale_O, zero_O, highest)


def _round(weight: Tensor, scale: Tensor, zero: Tensor, highest: int) -> Tensor:
    return (weight / scale).round_().clamp_(-zero, highest - zero).mul_(scale)
