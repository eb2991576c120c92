"""Which integer each weight becomes, so that the layer's result changes least.

The error of a layer whose weight changes by D is tr(Dᵀ·H·D) with H = XᵀX over the samples. Shapes: I inputs, O outputs,
G groups of S inputs, weights [I, O].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import NumericalError
from compressor.models.packed.description import WeightGrid
from compressor.models.packed.linear import PackedLinear
from passes.awq.grids import group_grids, nearest, rounded_row

_DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: inputs that the samples hardly use are not free."""
_BLOCK = 64
"""Inputs whose errors are handed on together."""
_SWEEPS = 2
_LEAST, _MOST = 0.5, 2.0
"""How far a scale may move when it is fitted again."""


@dataclass(frozen=True, slots=True)
class Gram:
    """H, damped, with what rounding needs of it."""

    gram_II: Tensor
    order_I: Tensor
    """Inputs by falling diagonal: what matters most is rounded first, while there is most to make up for it."""
    factor_II: Tensor
    """U, upper, with UᵀU = H⁻¹, in that order."""

    @classmethod
    def of(cls, gram_II: Tensor) -> Gram:
        """From XᵀX, which is damped in place.

        Raises:
            NumericalError: it is not positive definite, as with NaN.
        """
        diagonal_I = gram_II.diagonal()
        diagonal_I.add_(_DAMPING * diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny))
        order_I = diagonal_I.argsort(descending=True, stable=True)
        backwards_I = order_I.flip(0)
        # H = R·Rᵀ with R upper is a Cholesky factor from the other end; then H⁻¹ = (R⁻¹)ᵀ·R⁻¹, and R⁻¹ is upper too.
        root_II = gram_II[backwards_I.unsqueeze(1), backwards_I]
        root_II, failed = torch.linalg.cholesky_ex(root_II)
        if failed:
            raise NumericalError(
                "the second moments of a linear layer's inputs are not positive definite",
                remedy="look for weights or samples that make activations infinite",
            )
        root_II = root_II.flip(0, 1)
        factor_II = torch.eye(len(gram_II), dtype=gram_II.dtype)
        torch.linalg.solve_triangular(root_II, factor_II, upper=True, out=factor_II)
        return cls(gram_II, order_I, factor_II)


def error(gram_II: Tensor, off_IO: Tensor) -> float:
    """tr(offᵀ·H·off)."""
    return float((off_IO * (gram_II @ off_IO)).sum())


def rounded(
    weight_IO: Tensor, target_IO: Tensor, gram: Gram, grid: WeightGrid, dtype: torch.dtype, *, feedback: bool
) -> tuple[PackedLinear, Tensor]:
    """The integers of a layer.

    Args:
        weight_IO: what it computes with; its range decides the grids.
        target_IO: what it should compute with.
        gram: of its inputs.
        grid: bits, group size, symmetry.
        dtype: of the scales.
        feedback: round one input after another, and let those that follow make up for the error (GPTQ, Frantar et al. 2023,
            with the grids of the groups fixed before); then, twice, fit the scales again and choose each integer again with
            all others fixed. Otherwise each weight becomes the nearest value.

    Returns:
        The packed layer, and its weights [I, O].
    """
    scale_GO, zero_GO = group_grids(weight_IO, gram.gram_II.diagonal(), grid, dtype)
    if not feedback:
        values_IO = nearest(target_IO, scale_GO, zero_GO, grid.highest)
    else:
        values_IO = _with_feedback(target_IO, gram, scale_GO, zero_GO, grid.highest)
        for _ in range(_SWEEPS):
            scale_GO, values_IO = _fitted(target_IO, values_IO, gram.gram_II, scale_GO, dtype)
            _choose_again(target_IO, values_IO, gram.gram_II, scale_GO, zero_GO, grid.highest)
        scale_GO, values_IO = _fitted(target_IO, values_IO, gram.gram_II, scale_GO, dtype)
    integers_GSO = (values_IO.view(len(scale_GO), -1, values_IO.shape[1]) / scale_GO.unsqueeze(1)).round_()
    integers_GSO += zero_GO.unsqueeze(1)
    packed = PackedLinear(
        integers_GSO.flatten(0, 1).T.to(torch.uint8).contiguous(),
        scale_GO.T.to(dtype).contiguous(),
        zero_GO.T.to(torch.uint8).contiguous(),
    )
    return packed, values_IO


def _with_feedback(target_IO: Tensor, gram: Gram, scale_GO: Tensor, zero_GO: Tensor, highest: int) -> Tensor:
    """Frantar et al. 2023, equations 2 and 3, with the inverse's Cholesky factor and lazy updates by block."""
    inputs, outputs = target_IO.shape
    factor_II, group_I = gram.factor_II, gram.order_I // (inputs // len(scale_GO))
    left_IO = target_IO[gram.order_I]
    found_IO = torch.empty_like(left_IO)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.empty(end - start, outputs)
        for at in range(start, end):
            group = int(group_I[at])
            found_IO[at] = rounded_row(left_IO[at], scale_GO[group], zero_GO[group], highest)
            errors[at - start] = (left_IO[at] - found_IO[at]).div_(factor_II[at, at])
            if at + 1 < end:
                left_IO[at + 1 : end].addr_(factor_II[at, at + 1 : end], errors[at - start], alpha=-1)
        left_IO[end:].addmm_(factor_II[start:end, end:].T, errors, alpha=-1)
    values_IO = torch.empty_like(found_IO)
    values_IO[gram.order_I] = found_IO
    return values_IO


def _choose_again(
    target_IO: Tensor, values_IO: Tensor, gram_II: Tensor, scale_GO: Tensor, zero_GO: Tensor, highest: int
) -> None:
    """Each integer once more, the best with all others as they are: the error never grows. Changes ``values_IO``."""
    inputs, outputs = target_IO.shape
    size = inputs // len(scale_GO)
    slope_IO = gram_II @ (target_IO - values_IO)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        moved = torch.empty(end - start, outputs)
        for at in range(start, end):
            wanted_O = values_IO[at] + slope_IO[at] / gram_II[at, at]
            better_O = rounded_row(wanted_O, scale_GO[at // size], zero_GO[at // size], highest)
            moved[at - start] = better_O - values_IO[at]
            values_IO[at] = better_O
            slope_IO[at:end].addr_(gram_II[at, at:end], moved[at - start], alpha=-1)
        slope_IO[end:].addmm_(gram_II[start:end, end:].T, moved, alpha=-1)


def _fitted(
    target_IO: Tensor, values_IO: Tensor, gram_II: Tensor, scale_GO: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The scales with the least error for these integers: a least-squares problem of G unknowns for each output."""
    groups, outputs = scale_GO.shape
    steps_GSO = values_IO.view(groups, -1, outputs) / scale_GO.unsqueeze(1)
    products_OGG = torch.empty(outputs, groups, groups)
    for group, gram_IS in enumerate(gram_II.view(len(gram_II), groups, -1).unbind(1)):
        products_OGG[:, :, group] = ((gram_IS @ steps_GSO[group]).view_as(steps_GSO) * steps_GSO).sum(dim=1).T
    wanted_OG = ((gram_II @ target_IO).view_as(steps_GSO) * steps_GSO).sum(dim=1).T
    before_OG = scale_GO.T
    diagonal_OG = products_OGG.diagonal(dim1=1, dim2=2)
    diagonal_OG.add_(1e-6 * diagonal_OG.mean(dim=1, keepdim=True) + torch.finfo(torch.float32).tiny)
    after_OG = torch.linalg.solve(products_OGG, wanted_OG).to(dtype).float()
    allowed = (after_OG > _LEAST * before_OG) & (after_OG < _MOST * before_OG)
    after_OG = torch.where(allowed, after_OG, before_OG)

    def error_of(some_OG: Tensor) -> Tensor:  # less what no scale changes
        return ((products_OGG @ some_OG.unsqueeze(2)).squeeze(2) * some_OG).sum(1) - 2 * (some_OG * wanted_OG).sum(1)

    better_O1 = (error_of(after_OG) < error_of(before_OG)).unsqueeze(1)
    found_GO = torch.where(better_O1, after_OG, before_OG).T.contiguous()
    return found_GO, (steps_GSO * found_GO.unsqueeze(1)).view_as(values_IO)
