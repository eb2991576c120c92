"""Shrinkage of what is estimated from few calibration tokens, as far as it is sampling error.

With few tokens, GPTQ compensates by correlations between inputs that other samples do not have, and
error compensation fits the error of the very samples that it saw: both then lose more than they
gain. The two estimates here need no second set of samples. With many tokens they change nothing.

Shapes: I inputs, N positions, T targets of the regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from passes.common.weight_rounding.hessian import DAMPING, Hessian

_ROWS = 1024
"""Rows of a matrix that are handled together."""
_LARGEST_SHARE = 0.9
_STEPS = 10
"""Steps of the reliable fraction, about its own uncertainty: the order in which activations are
summed then hardly changes results. It is rounded up, to take back no more than is certain."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """Reduction of the correlations between inputs."""

    share: float
    """Part of the correlations that is removed, 0 to 1."""
    factor: float = 1.0
    """Factor of the second moments of two different inputs. Damping, which increases those of each
    input with itself, does the rest of the reduction."""


def shrink_correlations(moments_II: Tensor, positions: int) -> Shrinkage:
    """Reduce the second moments of different inputs by the share that is sampling error, in place.

    The share is Σ Var(r) / Σ r² over the correlations r of all pairs of inputs, with
    Var(r) = (1 − r²)² / N: Schäfer and Strimmer 2005 (doi:10.2202/1544-6115.1175), with the target
    of unequal variances and no correlation. Scales of inputs do not change it. Moments stay as they
    are where damping alone reduces the correlations that much.

    Args:
        moments_II: XᵀX.
        positions: N, the rows of X.
    """
    size_I = moments_II.diagonal().sqrt()
    variances = squares = 0.0
    for start in range(0, len(size_I), _ROWS):
        rows = slice(start, start + _ROWS)
        pairs_RI = moments_II[rows] / (size_I[rows].unsqueeze(1) * size_I).clamp(min=_TINY)
        square_RI = pairs_RI.square_().clamp_(max=1)
        square_RI.diagonal(start).fill_(1)  # an input with itself: no variance
        squares += float(square_RI.sum()) - len(square_RI)
        variances += float((1 - square_RI).square_().sum())
    share = min(variances / max(squares * positions, _TINY), _LARGEST_SHARE)
    by_damping = DAMPING / (1 + DAMPING)
    if share <= by_damping:
        return Shrinkage(0.0)
    shrinkage = Shrinkage(share, (1 - share) / (1 - by_damping))
    diagonal_I = moments_II.diagonal().clone()
    moments_II.mul_(shrinkage.factor).diagonal().copy_(diagonal_I)
    return shrinkage


@dataclass(frozen=True, slots=True)
class Regression:
    """Ridge regression of errors E [N, T] on inputs X [N, I], by their products alone."""

    products_IT: Tensor
    """XᵀE."""
    solution_IT: Tensor
    """(H + damping)⁻¹·XᵀE."""
    squares_T: Tensor
    """Sums of squares of E."""


def reliable_fraction(
    regression: Regression, hessian: Hessian, shrinkage: Shrinkage, positions: int
) -> float:
    """Return the fraction of a regression's prediction that is right on other samples.

    It is 0 to 1 in steps of 0.1, rounded up.

    It is the factor α of the predictions Ŷ that leaves the least error E − α·Ŷ where each sample is
    predicted by the regression on all others: ⟨E, Ŷ⟩ / ⟨Ŷ, Ŷ⟩, where every target counts alike,
    whatever its size. Such predictions follow from those of the whole regression, as in generalized
    cross-validation (Golub, Heath and Wahba 1979, doi:10.1080/00401706.1979.10489751):
    (Ŷ − d·E) / (1 − d) with d = trace(X·(H + λ)⁻¹·Xᵀ) / N.

    Args:
        regression: of the errors on the inputs.
        hessian: its damped H, of shrunk moments.
        shrinkage: of those moments; d and Ŷ belong to the original ones.
        positions: N.
    """
    solution_IT, squares_T = regression.solution_IT, regression.squares_T.double()
    weight_T = torch.where(squares_T > 0, 1 / squares_T, 0.0)
    # Differences of almost equal sums need double precision.
    diagonal_I = hessian.matrix_II.diagonal().double() - hessian.damping
    inverse_I = hessian.inverse_diagonal().double()
    overlap = solved = own = 0.0
    for start in range(0, len(solution_IT), _ROWS):
        rows = slice(start, start + _ROWS)
        part_RT = solution_IT[rows].double()
        square_RT = part_RT.square()
        overlap += float((regression.products_IT[rows] * part_RT).sum(0) @ weight_T)
        solved += float(square_RT.sum(dim=0) @ weight_T)
        own += float((diagonal_I[rows] @ square_RT) @ weight_T)

    def unshrunk(of_shrunk: float, of_diagonal: float) -> float:
        return (of_shrunk - (1 - shrinkage.factor) * of_diagonal) / shrinkage.factor

    fitted = unshrunk(overlap - hessian.damping * solved, own)
    freedom = unshrunk(
        len(inverse_I) - hessian.damping * float(inverse_I.sum()), float(diagonal_I @ inverse_I)
    )
    total, leverage = float(squares_T @ weight_T), freedom / max(positions, 1)
    predicted = fitted - 2 * leverage * overlap + leverage**2 * total
    if leverage >= 1 or predicted <= 0:
        return 0.0
    fraction = (1 - leverage) * (overlap - leverage * total) / predicted
    return min(math.ceil(max(fraction, 0.0) * _STEPS) / _STEPS, 1.0)
