"""Grids and scales of activations and weights.

Shapes: O output channels, K weights per output channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from calibration.observers import Observer
from calibration.table import Range
from compressor.models.quantized.quantization import Bits, Grid

_TINY = 1e-30
"""The inverse of a smaller scale is not a finite float32."""
_CLIPPING_FACTORS = torch.linspace(1.0, 0.4, 61, dtype=torch.float64).tolist()
"""Candidates for the clipping bound of weights, as parts of the largest magnitude."""


def observed_range(observer: Observer, bits: Bits) -> Range:
    """Return the range of an activation: its extremes, and the bounds that an observer chooses."""
    symmetric, from_zero = Grid(bits=bits), Grid(bits=bits, nonnegative=True)
    nonnegative = bool(observer.minimum_C[0] >= 0)
    return Range(
        values=observer.count,
        minimum=float(observer.minimum_C[0]),
        maximum=float(observer.maximum_C[0]),
        bound=float(observer.bound(symmetric.highest)[0]),
        bound_from_zero=float(observer.bound(from_zero.highest)[0]) if nonnegative else None,
    )


def activation_grid(range_: Range, bits: Bits, *, nonnegative: bool, symmetric: bool) -> Grid:
    """Return the grid of an activation.

    Args:
        range_: Observed range of the activation.
        bits: Bits of the grid.
        nonnegative: True for a grid that starts at 0, whatever the range is.
        symmetric: True for a symmetric grid; otherwise the integers are divided between both sides
            of 0 in the proportion of the range.
    """
    low, high = _ends(range_)
    if nonnegative or symmetric or low == high:
        return Grid(bits=bits, nonnegative=nonnegative)
    return Grid(bits=bits, below=round(-low / (high - low) * ((1 << bits) - 1)))


def _ends(range_: Range) -> tuple[float, float]:
    """Return the clipped minimum and maximum, with 0 between them."""
    low = min(max(range_.minimum, -range_.bound), 0.0)
    high = max(min(range_.maximum, range_.bound), 0.0)
    return low, high


def activation_scale(range_: Range, grid: Grid) -> Tensor:
    """Return the scale with which the grid covers the range, float32 []; 1 for a range of zeros.

    A grid that starts at 0 has the bound of a symmetric grid if the range has negative values,
    which are then clipped on purpose: the output of a layer before its ReLU, for example.
    """
    if grid.below is not None:
        low, high = _ends(range_)
        steps = [end / last for end, last in ((low, grid.lowest), (high, grid.highest)) if last]
        return torch.tensor(max(steps), dtype=torch.float32)
    bound = range_.bound
    if grid.nonnegative and range_.bound_from_zero is not None:
        bound = range_.bound_from_zero
    return torch.tensor(bound / grid.highest if bound > 0 else 1.0, dtype=torch.float32)


_VALUES_AT_ONCE = 1 << 16
"""Weights whose scales are searched together: they stay in the cache, and memory is bounded."""


@torch.no_grad()
def weight_scales(weight: Tensor, grid: Grid, choice: Literal["min-max", "mse"]) -> Tensor:
    """Return a scale for each output channel, float32 [O].

    Args:
        weight: [O, ...].
        grid: A symmetric grid.
        choice: ``min-max`` covers the largest magnitude, ``mse`` minimizes the squared error of
            rounding and clipping together.
    """
    weight_OK = weight.detach().flatten(1)
    rows = max(1, _VALUES_AT_ONCE // max(1, weight_OK.shape[1]))
    with _one_thread():
        return torch.cat(
            [_row_scales(part.double(), grid, choice) for part in torch.split(weight_OK, rows)]
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread.

    More of them wait for each other after every part, which takes up to a hundred times as long
    where other processes compute too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row_scales(weight_OK: Tensor, grid: Grid, choice: Literal["min-max", "mse"]) -> Tensor:
    largest_O = weight_OK.abs().amax(dim=1)
    largest_O = torch.where(largest_O > _TINY, largest_O, torch.ones_like(largest_O))
    best_O = largest_O / grid.highest
    if choice == "mse":
        least_O = torch.full_like(best_O, torch.inf)
        for factor in _CLIPPING_FACTORS:
            scale_O = factor * largest_O / grid.highest
            integer_OK = (weight_OK / scale_O[:, None]).round().clamp(grid.lowest, grid.highest)
            error_O = (integer_OK * scale_O[:, None] - weight_OK).square().sum(dim=1)
            best_O = torch.where(error_O < least_O, scale_O, best_O)
            least_O = torch.minimum(error_O, least_O)
    return best_O.float()
