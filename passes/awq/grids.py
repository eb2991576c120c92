"""A scale and a zero-point for every group of weights.

Shapes: I inputs, O outputs, G groups of S inputs. Weights lie as [I, O], such that all that belongs to an input is together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.models.quantized.description import WeightGrid

_NARROWEST = 0.5
_AT_ONCE = 1 << 18
"""Weights that are looked at together: what fits into a processor's cache."""
_SMALLEST = 2.0**-24
"""The smallest positive float16."""


def group_grids(
    weight_IO: Tensor,
    importance_I: Tensor,
    grid: WeightGrid,
    dtype: torch.dtype,
    candidates: int = 20,
) -> tuple[Tensor, Tensor]:
    """The scales and zero-points with the least Σ importance · (rounded − weight)², among ranges from whole to half.

    Args:
        weight_IO: float32.
        importance_I: of each input, such as its second moment.
        grid: bits, group size, symmetry.
        dtype: of the scales in the file; they are rounded to it before anything is measured.
        candidates: how many ranges are tried.

    Returns:
        Scales and zero-points, float32 [G, O] each.
    """
    inputs, outputs = weight_IO.shape
    weight_GSO = weight_IO.view(-1, grid.width(inputs), outputs)
    importance_GS1 = importance_I.view(len(weight_GSO), -1, 1)
    some = max(1, _AT_ONCE // (weight_GSO.shape[1] * outputs))
    parts = zip(torch.split(weight_GSO, some), torch.split(importance_GS1, some), strict=True)
    scales, zeros = zip(
        *(_best_grids(*part, grid, dtype, candidates) for part in parts), strict=True
    )
    return torch.cat(scales), torch.cat(zeros)


def _best_grids(
    weight_GSO: Tensor,
    importance_GS1: Tensor,
    grid: WeightGrid,
    dtype: torch.dtype,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    low_GO, high_GO = weight_GSO.amin(dim=1).clamp(max=0), weight_GSO.amax(dim=1).clamp(min=0)
    if grid.symmetric:
        high_GO = torch.maximum(-low_GO, high_GO)
        low_GO = -high_GO
    best_GO = torch.full_like(low_GO, torch.inf)
    scale_GO, zero_GO = torch.empty_like(low_GO), torch.empty_like(low_GO)
    for part in torch.linspace(1.0, _NARROWEST, candidates).tolist() if candidates > 1 else [1.0]:
        some_GO = (((high_GO - low_GO) * (part / grid.highest)).to(dtype).float()).clamp(
            min=_SMALLEST
        )
        at_GO = (-low_GO * part / some_GO).round_().clamp_(0, grid.highest)
        if grid.symmetric:
            at_GO.fill_(grid.middle)
        error_GO = _error(weight_GSO, importance_GS1, some_GO, at_GO, grid.highest)
        better = error_GO < best_GO
        best_GO = torch.where(better, error_GO, best_GO)
        scale_GO = torch.where(better, some_GO, scale_GO)
        zero_GO = torch.where(better, at_GO, zero_GO)
    return scale_GO, zero_GO


def nearest(weight_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor, highest: int) -> Tensor:
    """Each weight's nearest value on its grid, [I, O]."""
    weight_GSO = weight_IO.view(len(scale_GO), -1, weight_IO.shape[1])
    return _rounded(weight_GSO, scale_GO.unsqueeze(1), zero_GO.unsqueeze(1), highest).view_as(
        weight_IO
    )


def rounded_row(weight_O: Tensor, scale_O: Tensor, zero_O: Tensor, highest: int) -> Tensor:
    """The same for the weights of one input."""
    return _rounded(weight_O, scale_O, zero_O, highest)


def _rounded(weight: Tensor, scale: Tensor, zero: Tensor, highest: int) -> Tensor:
    return (weight / scale).round_().clamp_(-zero, highest - zero).mul_(scale)


def _error(
    weight_GSO: Tensor, importance_GS1: Tensor, scale_GO: Tensor, zero_GO: Tensor, highest: int
) -> Tensor:
    off_GSO = _rounded(weight_GSO, scale_GO.unsqueeze(1), zero_GO.unsqueeze(1), highest).sub_(
        weight_GSO
    )
    return off_GSO.square_().mul_(importance_GS1).sum(dim=1)
