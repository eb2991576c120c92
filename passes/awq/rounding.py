"""Which integer each weight becomes, so that the layer's result changes least.

The error of a layer whose weight changes by D is tr(Dᵀ·H·D) with H = XᵀX over the samples. Shapes: I inputs, O outputs,
G groups of S inputs, weights [I, O].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import NumericalError
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.grids import group_grids, nearest, rounded_row

_DAMPING = 0.1
"""Of the mean of H's diagonal, added to it: inputs that samples hardly use are not free, and weights stay near the parent's."""
_ROWS = 1024
"""Rows of H that are summed up or multiplied together."""
_BLOCK = 64
"""Inputs whose errors are handed on together."""
_LEAST, _MOST = 0.5, 2.0
"""How far a scale may move when it is fitted again."""


@dataclass(frozen=True, slots=True)
class Gram:
    """H, damped, with what rounding needs of it."""

    gram_II: Tensor
    damping: float
    """What was added to H's diagonal."""
    order_I: Tensor
    """Inputs by rising diagonal. The last matters most and is rounded first, while there is most to make up for it."""
    factor_II: Tensor
    """L⁻¹, lower, with L·Lᵀ = H in that order; so H⁻¹ = L⁻ᵀ·L⁻¹."""

    @classmethod
    def of(cls, gram_II: Tensor) -> Gram:
        """From XᵀX, which is damped in place.

        Raises:
            NumericalError: it is not positive definite, as with NaN.
        """
        diagonal_I = gram_II.diagonal()
        damping = _DAMPING * float(diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny))
        diagonal_I.add_(damping)
        order_I = diagonal_I.argsort(stable=True)
        root_II = gram_II[order_I.unsqueeze(1), order_I]
        root_II, failed = torch.linalg.cholesky_ex(root_II)
        if failed:
            raise NumericalError(
                "the second moments of a linear layer's inputs are not positive definite",
                remedy="look for weights or samples that make activations infinite",
            )
        invert_lower(root_II)
        return cls(gram_II, damping, order_I, root_II)

    def solved(self, right_IK: Tensor) -> Tensor:
        """H⁻¹ · right."""
        half_IK = right_IK[self.order_I]
        inputs = len(half_IK)
        blocks = [slice(start, min(start + _ROWS, inputs)) for start in range(0, inputs, _ROWS)]
        for rows in reversed(
            blocks
        ):  # a product with a triangle is half of one with a square, and needs no second matrix
            half_IK[rows] = self.factor_II[rows, : rows.stop] @ half_IK[: rows.stop]
        for rows in blocks:
            half_IK[rows] = self.factor_II[rows.start :, rows].T @ half_IK[rows.start :]
        return _in_place_of(self.order_I, half_IK)


def invert_lower(root_II: Tensor) -> None:
    """A lower triangular matrix becomes its inverse, by halves: a third of the arithmetic of solving for the identity.

    With blocks A, 0; B, C the inverse's are A⁻¹, 0; −C⁻¹·B·A⁻¹, C⁻¹.
    """
    inputs = len(root_II)
    if inputs <= _ROWS:
        whole_II = torch.eye(inputs, dtype=root_II.dtype)
        root_II.copy_(torch.linalg.solve_triangular(root_II, whole_II, upper=False))
        return
    half = inputs // 2
    first, below, last = root_II[:half, :half], root_II[half:, :half], root_II[half:, half:]
    across = torch.linalg.solve_triangular(last, below, upper=False).neg_()
    below.copy_(torch.linalg.solve_triangular(first, across, upper=False, left=False))
    invert_lower(first)
    invert_lower(last)


def add_moments(gram_II: Tensor, x_NI: Tensor) -> None:
    """Add XᵀX above the diagonal, by blocks, and some of it below; ``mirrored`` makes the matrix whole."""
    for start in range(0, len(gram_II), _ROWS):
        x_NM = x_NI[:, start : start + _ROWS]
        gram_II[start : start + _ROWS, start:].addmm_(x_NM.T, x_NI[:, start:])


def mirrored(gram_II: Tensor) -> Tensor:
    """The matrix with what is above the diagonal below it too, in place."""
    for start in range(0, len(gram_II), _ROWS):
        end = start + _ROWS
        gram_II[end:, start:end] = gram_II[start:end, end:].T
    return gram_II


def error(gram_II: Tensor, off_IO: Tensor) -> Tensor:
    """The diagonal of offᵀ·H·off, [O]."""
    return (off_IO * (gram_II @ off_IO)).sum(dim=0)


def rounded(
    weight_IO: Tensor,
    target_IO: Tensor,
    gram: Gram,
    grid: WeightGrid,
    dtype: torch.dtype,
    *,
    feedback: bool,
) -> PackedLinear:
    """The integers of a layer.

    Args:
        weight_IO: what it computes with; its range decides the grids.
        target_IO: what it should compute with.
        gram: of its inputs.
        grid: bits, group size, symmetry.
        dtype: of the scales.
        feedback: round one input after another, and let those that follow make up for the error (GPTQ, Frantar et al. 2023,
            with the grids of the groups fixed before); then choose each integer and each scale once more, with all others
            fixed. Otherwise each weight becomes the nearest value.
    """
    scale_GO, zero_GO = group_grids(weight_IO, gram.gram_II.diagonal(), grid, dtype)
    if feedback:
        values_IO, slope_IO = with_feedback(target_IO, gram, scale_GO, zero_GO, grid.highest)
        choose_again(values_IO, slope_IO, gram.gram_II, scale_GO, zero_GO, grid.highest, dtype)
    else:
        values_IO = nearest(target_IO, scale_GO, zero_GO, grid.highest)
    return packed_of(values_IO, scale_GO, zero_GO, grid, dtype)


def packed_of(
    values_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor, grid: WeightGrid, dtype: torch.dtype
) -> PackedLinear:
    """The integers of values that lie on their grids."""
    integers_GSO = (
        values_IO.view(len(scale_GO), -1, values_IO.shape[1]) / scale_GO.unsqueeze(1)
    ).round_()
    integers_GSO += zero_GO.unsqueeze(1)
    return PackedLinear(
        integers_GSO.flatten(0, 1).T.to(torch.uint8).contiguous(),
        scale_GO.T.to(dtype).contiguous(),
        zero_GO.T.to(torch.uint8).contiguous(),
        grid,
    )


def with_feedback(
    target_IO: Tensor, gram: Gram, scale_GO: Tensor, zero_GO: Tensor, highest: int
) -> tuple[Tensor, Tensor]:
    """Frantar et al. 2023, equations 2 and 3, with the inverse's Cholesky factor and lazy updates by block.

    Returns:
        The values, and H · (target − values), both [I, O]. With E the errors in the diagonal's units, target − values = L⁻ᵀ·E,
        so the second is L·E: a triangular system, half of the product.
    """
    inputs = len(target_IO)
    factor_II, groups = gram.factor_II, (gram.order_I // (inputs // len(scale_GO))).tolist()
    left_IO = target_IO[gram.order_I]
    errors_IO = torch.empty_like(left_IO)
    for end in range(inputs, 0, -_BLOCK):
        start = max(end - _BLOCK, 0)
        errors_SO = errors_IO[start:end]
        scale_SO, zero_SO = scale_GO[groups[start:end]], zero_GO[groups[start:end]]
        for at in range(end - start - 1, -1, -1):
            row_O = left_IO[start + at]
            found_O = rounded_row(row_O, scale_SO[at], zero_SO[at], highest)
            torch.sub(row_O, found_O, out=errors_SO[at]).div_(factor_II[start + at, start + at])
            left_IO[start : start + at].addr_(
                factor_II[start + at, start : start + at], errors_SO[at], alpha=-1
            )
            row_O.copy_(found_O)
        left_IO[:start].addmm_(factor_II[start:end, :start].T, errors_SO, alpha=-1)
    slope_IO = torch.linalg.solve_triangular(factor_II, errors_IO, upper=False)
    return _in_place_of(gram.order_I, left_IO), _in_place_of(gram.order_I, slope_IO)


def _in_place_of(order_I: Tensor, ordered_IO: Tensor) -> Tensor:
    """Rows back from an order."""
    found_IO = torch.empty_like(ordered_IO)
    found_IO[order_I] = ordered_IO
    return found_IO


def choose_again(
    values_IO: Tensor,
    slope_IO: Tensor,
    gram_II: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor,
    highest: int,
    dtype: torch.dtype,
) -> None:
    """Each integer and each scale once more, the best with all others as they are: the error never grows.

    Args:
        values_IO: changed.
        slope_IO: H · (target − values); used up.
        gram_II: H.
        scale_GO: changed.
        zero_GO: zero-points.
        highest: integer.
        dtype: of the scales.
    """
    inputs = len(values_IO)
    size = inputs // len(scale_GO)
    for group in range(len(scale_GO)):
        here, after = slice(group * size, (group + 1) * size), slice((group + 1) * size, inputs)
        own_SS, before_SO = gram_II[here, here], values_IO[here]
        found_SO = before_SO.clone()
        _descend(found_SO, slope_IO[here].clone(), own_SS, scale_GO[group], zero_GO[group], highest)
        slope_SO = slope_IO[here].addmm_(own_SS, found_SO - before_SO, alpha=-1)
        scale_GO[group] = _fitted(found_SO, slope_SO, own_SS, scale_GO[group], dtype)
        slope_IO[after].addmm_(gram_II[here, after].T, found_SO - before_SO, alpha=-1)
        values_IO[here] = found_SO


def _descend(
    values_SO: Tensor,
    slope_SO: Tensor,
    gram_SS: Tensor,
    scale_O: Tensor,
    zero_O: Tensor,
    highest: int,
) -> None:
    """The integers of a group, one input after another, each the best for what is left of the slope. Changes ``values_SO``."""
    inputs = len(values_SO)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        moved_SO = values_SO[start:end].clone()
        for at in range(start, end):
            wanted_O = torch.addcdiv(values_SO[at], slope_SO[at], gram_SS[at, at])
            better_O = rounded_row(wanted_O, scale_O, zero_O, highest)
            torch.sub(better_O, values_SO[at], out=moved_SO[at - start])
            values_SO[at] = better_O
            slope_SO[at + 1 : end].addr_(gram_SS[at, at + 1 : end], moved_SO[at - start], alpha=-1)
        slope_SO[end:].addmm_(gram_SS[start:end, end:].T, moved_SO, alpha=-1)


def _fitted(
    values_SO: Tensor, slope_SO: Tensor, gram_SS: Tensor, scale_O: Tensor, dtype: torch.dtype
) -> Tensor:
    """The scale of a group with the least error for its integers, [O]. Changes ``values_SO`` accordingly."""
    steps_SO = values_SO / scale_O
    curvature_O = (steps_SO * (gram_SS @ steps_SO)).sum(dim=0)
    gradient_O = (steps_SO * slope_SO).sum(dim=0)
    best_O = scale_O + gradient_O / curvature_O.clamp(min=torch.finfo(torch.float32).tiny)
    found_O = best_O.clamp(_LEAST * scale_O, _MOST * scale_O).to(dtype).float()
    step_O = found_O - scale_O
    found_O = torch.where(step_O * (step_O * curvature_O - 2 * gradient_O) < 0, found_O, scale_O)
    torch.mul(steps_SO, found_O, out=values_SO)
    return found_O
