"""The scale of a grid, from the values that it must hold.

Shapes: O output channels, K values of each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from calibration.table import Range
from compressor.models.quantized.quantization import Bits, Grid

_NOTHING = 1e-30
"""Below it a float32 has no inverse to multiply by."""
_CLIPS = torch.linspace(1.0, 0.4, 61, dtype=torch.float64).tolist()
"""Parts of the largest magnitude at which weights may be clipped."""


def activation_grid(seen: Range, bits: Bits, *, nonnegative: bool, symmetric: bool) -> Grid:
    """The grid of an activation.

    Args:
        seen: what it held.
        bits: of the grid.
        nonnegative: whether it is from 0 up, whatever was seen.
        symmetric: otherwise as many integers lie on each side of 0 as its values need there.
    """
    low, high = _ends(seen)
    if nonnegative or symmetric or low == high:
        return Grid(bits=bits, nonnegative=nonnegative)
    return Grid(bits=bits, below=round(-low / (high - low) * ((1 << bits) - 1)))


def _ends(seen: Range) -> tuple[float, float]:
    """The smallest and the largest value to hold; 0 lies between."""
    return min(max(seen.minimum, -seen.bound), 0.0), max(min(seen.maximum, seen.bound), 0.0)


def activation_scale(seen: Range, grid: Grid) -> Tensor:
    """One scale, such that the largest integer is the bound; 1 for a bound of 0, where there is nothing to hold.

    What is clipped at 0 on purpose, such as the result of a layer before its ReLU, has the symmetric grid's bound.
    """
    if grid.below is not None:
        low, high = _ends(seen)
        steps = [end / last for end, last in ((low, grid.lowest), (high, grid.highest)) if last]
        return torch.tensor(max(steps), dtype=torch.float32)
    bound = (
        seen.bound_from_zero
        if grid.nonnegative and seen.bound_from_zero is not None
        else seen.bound
    )
    return torch.tensor(bound / grid.highest if bound > 0 else 1.0, dtype=torch.float32)


@torch.no_grad()
def weight_scales(weight: Tensor, grid: Grid, choice: Literal["min-max", "mse"]) -> Tensor:
    """A scale for each output channel: [O].

    Args:
        weight: [O, ...].
        grid: a symmetric one.
        choice: hold the largest magnitude; or clip where rounding and clipping together have the least squared error.
    """
    weight_OK = weight.detach().flatten(1).double()
    largest_O = weight_OK.abs().amax(dim=1)
    largest_O = torch.where(largest_O > _NOTHING, largest_O, torch.ones_like(largest_O))
    best_O = largest_O / grid.highest
    if choice == "mse":
        least_O = torch.full_like(best_O, torch.inf)
        for part in _CLIPS:
            scale_O = part * largest_O / grid.highest
            rounded_OK = (weight_OK / scale_O[:, None]).round().clamp(
                grid.lowest, grid.highest
            ) * scale_O[:, None]
            error_O = (rounded_OK - weight_OK).square().sum(dim=1)
            best_O, least_O = (
                torch.where(error_O < least_O, scale_O, best_O),
                torch.minimum(error_O, least_O),
            )
    return best_O.float()
