"""Input channel scales under which weights round better (AWQ, Lin et al. 2024, arXiv:2306.00978).

A scale multiplies the weights of an input channel and divides that channel where it is computed.
Shapes: I inputs, O outputs; weights are [I, O].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.models.capabilities.folding import (
    divide_bias,
    divisors_of_rows,
    fold_scale,
    multiply_other_readers,
)
from compressor.models.capabilities.linear_groups import Source
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.input_statistics import InputStatistics
from passes.awq.linear_layers import get_linear
from passes.awq.settings import QuantizationSettings
from passes.common.weight_rounding.grids import ScaleFormat, round_to_nearest, search_grids
from passes.common.weight_rounding.hessian import squared_error

_EXPONENTS = 20
"""Number of candidate exponents, 0 to 0.95."""
_SEARCH_STEPS = (4, 2, 1)
"""Distances between exponents: the coarse grid first, then the neighbours of its best."""
_RANGE_CANDIDATES = 6
"""Ranges to try for each group while scales are compared."""
_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Scaling:
    """Scales of a site's input channels."""

    scale_I: Tensor
    exponent: float
    """Exponent of the mean magnitude of the activations; 0 means that nothing is scaled."""
    relative_error: float
    """Error of rounding to nearest, divided by the error without scaling."""


def search_scales(
    weight_IO: Tensor,
    relative_size_I: Tensor,
    statistics: InputStatistics,
    source: Source,
    grid: WeightGrid,
    scale_format: ScaleFormat,
) -> Scaling:
    """Find s = x̄^r / w̄^(1−r) with the best of 20 exponents r; no scaling if it does not help.

    The error of a candidate is tr(Dᵀ·H·D) with D the change that rounding the scaled weights makes,
    divided by s. No sample runs again.

    Args:
        weight_IO: weights of a sample of the outputs of the layers that read the input.
        relative_size_I: w̄, from ``relative_size`` of all outputs.
        statistics: of the input; x̄ is its mean magnitude.
        source: where the scales are folded; inputs that come from the same row share a scale.
        grid: bits, group size and symmetry.
        scale_format: scales that the file can hold.
    """
    activation_I = average_shared(statistics.magnitude_I, source).clamp(min=_FLOOR)
    size_I = average_shared(relative_size_I, source).clamp(min=_FLOOR)
    candidates: dict[int, tuple[float, Tensor]] = {}

    def evaluate(point: int) -> None:
        ratio = point / _EXPONENTS
        scale_I = activation_I**ratio / size_I ** (1 - ratio) if point else torch.ones_like(size_I)
        scale_I /= (scale_I.max() * scale_I.min()).sqrt()
        error = _error_of_scale(scale_I, weight_IO, statistics.moments_II, grid, scale_format)
        candidates[point] = error, scale_I

    best = 0
    for step in _SEARCH_STEPS:
        points = range(0, _EXPONENTS, step) if not candidates else (best - step, best + step)
        for point in points:
            if point not in candidates and 0 <= point < _EXPONENTS:
                evaluate(point)
        best = min(candidates, key=lambda point: candidates[point][0])
    error, scale_I = candidates[best]
    return Scaling(scale_I, best / _EXPONENTS, error / max(candidates[0][0], _FLOOR**8))


def _error_of_scale(
    scale_I: Tensor,
    weight_IO: Tensor,
    moments_II: Tensor,
    grid: WeightGrid,
    scale_format: ScaleFormat,
) -> float:
    """Return the squared error of rounding the scaled weights to nearest."""
    scaled_IO = weight_IO * scale_I.unsqueeze(1)
    importance_I = moments_II.diagonal() / scale_I.square()
    grids = search_grids(scaled_IO, importance_I, grid, scale_format, _RANGE_CANDIDATES)
    rounded_IO = round_to_nearest(scaled_IO, grids) / scale_I.unsqueeze(1)
    return float(squared_error(moments_II, rounded_IO.sub_(weight_IO)).sum())


def average_shared(value_I: Tensor, source: Source) -> Tensor:
    """Return the mean over the inputs that come from the same row of ``source``, [I]."""
    if source.repeats == 1:
        return value_I
    blocks = value_I.view(-1, source.repeats, source.block)
    return blocks.mean(dim=1, keepdim=True).expand_as(blocks).reshape(-1)


def relative_size(weight_IO: Tensor, width: int) -> Tensor:
    """Return the mean over outputs of |w| / (largest |w| of its group of ``width`` inputs), [I]."""
    size_GSO = weight_IO.abs().view(-1, width, weight_IO.shape[1])
    return (size_GSO / size_GSO.amax(dim=1, keepdim=True).clamp(min=_FLOOR)).mean(dim=2).flatten()


def fold_into_source(
    layer: nn.Module,
    source: Source,
    scale_I: Tensor,
    settings: QuantizationSettings,
    packed: dict[str, PackedLinear],
) -> None:
    """Divide the channels of a site's input by ``scale_I`` where they are computed, in place.

    As ``fold_scale``; but if the source is packed already, its scales are divided, and its weights
    become what the packed layer holds.

    Args:
        layer: the block that holds the modules.
        source: the norm or linear layer that computes the input.
        scale_I: positive; equal for inputs that come from the same row.
        settings: dtype that vectors are rounded to, and scales that the file can hold.
        packed: layers that are packed already, by name.
    """
    dtype = settings.float_dtype
    if source.module not in packed:
        fold_scale(layer, source, scale_I, dtype)
        return
    multiply_other_readers(layer, source, scale_I)
    divisors_O = divisors_of_rows(layer, source, scale_I)
    divide_bias(layer, source, divisors_O, dtype)
    linear = packed[source.module]
    scales_OG = settings.scale_format.round(
        linear.scales_OG.float() / divisors_O.unsqueeze(1), linear.zeros_OG.float()
    )
    packed[source.module] = linear.with_scales(scales_OG)
    get_linear(layer, source.module).weight.data = packed[source.module].dequantize()
