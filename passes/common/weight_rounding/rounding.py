"""Rounding of weights to integers with the least error of the layer's result.

Shapes: I inputs, O outputs, G groups of S inputs; weights are [I, O]. H is the Hessian of
``hessian.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid
from passes.common.weight_rounding.grids import (
    GroupGrids,
    ScaleFormat,
    round_row,
    round_to_nearest,
    search_grids,
)
from passes.common.weight_rounding.hessian import Hessian

_BLOCK = 64
"""Inputs whose errors are propagated together to the weights outside the block."""
_MIN_SCALE_CHANGE, _MAX_SCALE_CHANGE = 0.5, 2.0
"""Bounds on the factor by which a refitted scale may change."""


def quantize_weights(
    weight_IO: Tensor,
    target_IO: Tensor,
    hessian: Hessian,
    grid: WeightGrid,
    scale_format: ScaleFormat,
    *,
    gptq: bool,
) -> PackedLinear:
    """Round the weights of a layer.

    Args:
        weight_IO: the weights in float; their range determines the grids.
        target_IO: the weights to approximate: ``weight_IO`` with the error of earlier layers
            compensated.
        hessian: of the layer's inputs.
        grid: bits, group size and symmetry.
        scale_format: scales that the file can hold.
        gptq: True for GPTQ, with the grids of all groups fixed before, and one sweep of coordinate
            descent; otherwise each weight is rounded to nearest.
    """
    importance_I = hessian.matrix_II.diagonal()
    grids = search_grids(weight_IO, importance_I, grid, scale_format)
    if gptq:
        values_IO, gradient_IO = gptq_round(target_IO, hessian, grids)
        coordinate_descent(values_IO, gradient_IO, hessian.matrix_II, grids)
    else:
        values_IO = round_to_nearest(target_IO, grids)
    return pack_values(values_IO, grids)


def pack_values(values_IO: Tensor, grids: GroupGrids) -> PackedLinear:
    """Return the integers of values that lie on their grids."""
    scale_GO, zero_GO = grids.scale_GO, grids.zero_GO
    values_GSO = values_IO.view(len(scale_GO), -1, values_IO.shape[1])
    integers_GSO = (values_GSO / scale_GO.unsqueeze(1)).round_()
    integers_GSO += zero_GO.unsqueeze(1)
    return PackedLinear(
        integers_GSO.flatten(0, 1).T.to(torch.uint8).contiguous(),
        scale_GO.T.to(grids.scale_format.dtype).contiguous(),
        zero_GO.T.to(torch.uint8).contiguous(),
        grids.grid,
    )


def gptq_round(target_IO: Tensor, hessian: Hessian, grids: GroupGrids) -> tuple[Tensor, Tensor]:
    """Round one input after another; later weights compensate the error of each.

    GPTQ: Frantar et al. 2023, equations 2 and 3, with the Cholesky factor of the inverse Hessian
    and lazy batched updates (section 3.3).

    Returns:
        The rounded values, and the negative half gradient of the error, H · (target − values), both
        [I, O]. With E the scaled errors, target − values = L⁻ᵀ·E, so that the gradient is L·E: a
        triangular system is solved in half of the time of the product.
    """
    inputs = len(target_IO)
    factor_II = hessian.inverse_factor_II
    groups = (hessian.order_I // (inputs // len(grids.scale_GO))).tolist()
    values_IO = target_IO[hessian.order_I]
    errors_IO = torch.empty_like(values_IO)
    for end in range(inputs, 0, -_BLOCK):
        start = max(end - _BLOCK, 0)
        errors_SO = errors_IO[start:end]
        scale_SO, zero_SO = grids.scale_GO[groups[start:end]], grids.zero_GO[groups[start:end]]
        for at in range(end - start - 1, -1, -1):
            row_O = values_IO[start + at]
            rounded_O = round_row(row_O, scale_SO[at], zero_SO[at], grids.grid.highest)
            torch.sub(row_O, rounded_O, out=errors_SO[at]).div_(factor_II[start + at, start + at])
            values_IO[start : start + at].addr_(
                factor_II[start + at, start : start + at], errors_SO[at], alpha=-1
            )
            row_O.copy_(rounded_O)
        values_IO[:start].addmm_(factor_II[start:end, :start].T, errors_SO, alpha=-1)
    gradient_IO = torch.linalg.solve_triangular(factor_II, errors_IO, upper=False)
    return hessian.restore_order(values_IO), hessian.restore_order(gradient_IO)


def coordinate_descent(
    values_IO: Tensor, gradient_IO: Tensor, hessian_II: Tensor, grids: GroupGrids
) -> None:
    """Improve each integer and each scale once, all others fixed; the error never grows.

    Cyclic coordinate descent over the inputs, as in QuantEase (Behdin et al. 2023,
    arXiv:2309.01885), with a least-squares refit of each group's scale after its integers.

    Args:
        values_IO: rounded values, changed in place.
        gradient_IO: H · (target − values); its content is lost.
        hessian_II: H.
        grids: the scales are changed in place.
    """
    inputs = len(values_IO)
    size = inputs // len(grids.scale_GO)
    for group in range(len(grids.scale_GO)):
        rows, later = slice(group * size, (group + 1) * size), slice((group + 1) * size, inputs)
        hessian_SS, before_SO = hessian_II[rows, rows], values_IO[rows]
        values_SO = before_SO.clone()
        _descend_group(values_SO, gradient_IO[rows].clone(), hessian_SS, grids, group)
        gradient_SO = gradient_IO[rows].addmm_(hessian_SS, values_SO - before_SO, alpha=-1)
        grids.scale_GO[group] = _refit_scale(values_SO, gradient_SO, hessian_SS, grids, group)
        gradient_IO[later].addmm_(hessian_II[rows, later].T, values_SO - before_SO, alpha=-1)
        values_IO[rows] = values_SO


def _descend_group(
    values_SO: Tensor, gradient_SO: Tensor, hessian_SS: Tensor, grids: GroupGrids, group: int
) -> None:
    """Choose the best integer of each input of a group in turn; changes both first arguments."""
    scale_O, zero_O, highest = grids.scale_GO[group], grids.zero_GO[group], grids.grid.highest
    inputs = len(values_SO)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        change_SO = values_SO[start:end].clone()
        for at in range(start, end):
            optimum_O = torch.addcdiv(values_SO[at], gradient_SO[at], hessian_SS[at, at])
            best_O = round_row(optimum_O, scale_O, zero_O, highest)
            torch.sub(best_O, values_SO[at], out=change_SO[at - start])
            values_SO[at] = best_O
            gradient_SO[at + 1 : end].addr_(
                hessian_SS[at, at + 1 : end], change_SO[at - start], alpha=-1
            )
        gradient_SO[end:].addmm_(hessian_SS[start:end, end:].T, change_SO, alpha=-1)


def _refit_scale(
    values_SO: Tensor,
    gradient_SO: Tensor,
    hessian_SS: Tensor,
    grids: GroupGrids,
    group: int,
) -> Tensor:
    """Return the scale with the least error for a group's integers, [O]; rescales the values."""
    scale_O = grids.scale_GO[group]
    steps_SO = values_SO / scale_O
    curvature_O = (steps_SO * (hessian_SS @ steps_SO)).sum(dim=0)
    slope_O = (steps_SO * gradient_SO).sum(dim=0)
    optimum_O = scale_O + slope_O / curvature_O.clamp(min=torch.finfo(torch.float32).tiny)
    least_O, most_O = _MIN_SCALE_CHANGE * scale_O, _MAX_SCALE_CHANGE * scale_O
    bounds = torch.minimum(least_O, most_O), torch.maximum(least_O, most_O)  # a scale may be < 0
    fitted_O = grids.scale_format.round(optimum_O.clamp(*bounds), grids.zero_GO[group])
    change_O = fitted_O - scale_O
    is_better_O = change_O * (change_O * curvature_O - 2 * slope_O) < 0
    fitted_O = torch.where(is_better_O, fitted_O, scale_O)
    torch.mul(steps_SO, fitted_O, out=values_SO)
    return fitted_O
