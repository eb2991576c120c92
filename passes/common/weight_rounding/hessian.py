"""Second moments of a linear layer's inputs, and the damped Hessian of its rounding error.

If a weight matrix changes by D [I, O], the squared error of the layer's result over the samples is
tr(Dᵀ·H·D) with H = XᵀX. Shapes: I inputs, O outputs, N positions, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import NumericalError

DAMPING = 0.1
"""Fraction of the mean of H's diagonal that is added to the diagonal. It keeps weights near the
parent's where the samples hardly use an input."""
_ROWS = 1024
"""Rows of a matrix that are summed or multiplied together."""


@dataclass(frozen=True, slots=True)
class Hessian:
    """The damped H with the Cholesky factor of its inverse."""

    matrix_II: Tensor
    """H + damping · identity."""
    damping: float
    order_I: Tensor
    """Inputs by rising diagonal. GPTQ starts at the last, most important one: then most other
    weights can still compensate its error."""
    inverse_factor_II: Tensor
    """Lower triangular L⁻¹ with L·Lᵀ = H in that order, so that H⁻¹ = L⁻ᵀ·L⁻¹."""

    @classmethod
    def from_moments(cls, moments_II: Tensor) -> Hessian:
        """Return the Hessian of second moments XᵀX, which are damped in place.

        Raises:
            NumericalError: the moments are not positive definite, as with NaN.
        """
        diagonal_I = moments_II.diagonal()
        damping = DAMPING * float(diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny))
        diagonal_I.add_(damping)
        order_I = diagonal_I.argsort(stable=True)
        factor_II = moments_II[order_I.unsqueeze(1), order_I]
        factor_II, failed = torch.linalg.cholesky_ex(factor_II)
        if failed:
            raise NumericalError(
                "the second moments of a linear layer's inputs are not positive definite",
                remedy="look for weights or samples that make activations infinite",
            )
        invert_lower(factor_II)
        return cls(moments_II, damping, order_I, factor_II)

    def solve(self, right_IK: Tensor) -> Tensor:
        """Return H⁻¹ · right, [I, K]."""
        half_IK = right_IK[self.order_I]
        inputs = len(half_IK)
        blocks = [slice(start, min(start + _ROWS, inputs)) for start in range(0, inputs, _ROWS)]
        # The triangular products skip the zeros and, going backwards, need no second matrix.
        for rows in reversed(blocks):
            half_IK[rows] = self.inverse_factor_II[rows, : rows.stop] @ half_IK[: rows.stop]
        for rows in blocks:
            half_IK[rows] = self.inverse_factor_II[rows.start :, rows].T @ half_IK[rows.start :]
        return self.restore_order(half_IK)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of H⁻¹, [I]."""
        diagonal_I = torch.empty(len(self.order_I))
        diagonal_I[self.order_I] = torch.linalg.vector_norm(self.inverse_factor_II, dim=0).square()
        return diagonal_I

    def restore_order(self, ordered_IK: Tensor) -> Tensor:
        """Return rows that are sorted by ``order_I`` in the order of the inputs."""
        restored_IK = torch.empty_like(ordered_IK)
        restored_IK[self.order_I] = ordered_IK
        return restored_IK


def invert_lower(factor_II: Tensor) -> None:
    """Replace a lower triangular matrix by its inverse.

    The inverse of the blocks [A 0; B C] is [A⁻¹ 0; −C⁻¹·B·A⁻¹ C⁻¹]. Recursion takes a third of the
    arithmetic of solving for the identity.
    """
    inputs = len(factor_II)
    if inputs <= _ROWS:
        identity_II = torch.eye(inputs, dtype=factor_II.dtype)
        factor_II.copy_(torch.linalg.solve_triangular(factor_II, identity_II, upper=False))
        return
    half = inputs // 2
    top, below, bottom = factor_II[:half, :half], factor_II[half:, :half], factor_II[half:, half:]
    product = torch.linalg.solve_triangular(bottom, below, upper=False).neg_()
    below.copy_(torch.linalg.solve_triangular(top, product, upper=False, left=False))
    invert_lower(top)
    invert_lower(bottom)


def add_moments(moments_II: Tensor, x_NI: Tensor) -> None:
    """Add XᵀX to the blocks on and above the diagonal; ``mirror_upper`` completes the matrix."""
    for start in range(0, len(moments_II), _ROWS):
        x_NM = x_NI[:, start : start + _ROWS]
        moments_II[start : start + _ROWS, start:].addmm_(x_NM.T, x_NI[:, start:])


def mirror_upper(moments_II: Tensor) -> Tensor:
    """Copy the blocks above the diagonal below it, in place, and return the matrix."""
    for start in range(0, len(moments_II), _ROWS):
        end = start + _ROWS
        moments_II[end:, start:end] = moments_II[start:end, end:].T
    return moments_II


def squared_error(moments_II: Tensor, change_IO: Tensor) -> Tensor:
    """Return the squared error of each output if the weights change: diag(Dᵀ·H·D), [O]."""
    return (change_IO * (moments_II @ change_IO)).sum(dim=0)
