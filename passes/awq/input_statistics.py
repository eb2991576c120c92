"""Statistics of the inputs that calibration samples bring to the linear layers of a site.

Shapes: I inputs, O outputs of all linear layers of the site.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from passes.awq.bias_correction import SampleMeans


@dataclass(frozen=True, slots=True)
class ErrorMoments:
    """Correlation of the inputs X with the error that earlier quantized layers cause.

    It determines the weights that compensate the error (QEP, Arai and Ichikawa 2025,
    arXiv:2504.09629): W* = W + α · H⁻¹ · Xᵀ · (error of the result).
    """

    matrix: Tensor
    """Xᵀ·(X* − X), [I, I], with X* the inputs of the float model; or Xᵀ·(Y* − Y), [I, O], with
    Y* the results of the float model and Y = X·W."""
    squares: Tensor
    """Sums of squares of the error: of X* − X, [I], or of Y* − Y, [O]."""
    is_of_input: bool
    """True for the first form. The error of the result is then (X* − X)·W."""


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Statistics of the inputs of a site over all calibration samples."""

    moments_II: Tensor
    """Second moments XᵀX."""
    magnitude_I: Tensor
    """Mean of |x|."""
    error: ErrorMoments | None = None
    """None if errors of earlier layers are not compensated."""
    positions: int = 0
    """Number of positions."""
    means: SampleMeans | None = None
    """Means of inputs and errors; None if no bias is corrected by them."""

    def divide_inputs(self, scale_I: Tensor) -> None:
        """Turn the moments into those of x / scale, in place; weights are multiplied by it."""
        self.moments_II.div_(scale_I.unsqueeze(1)).div_(scale_I)
        if self.error is not None:
            self.error.matrix.div_(scale_I.unsqueeze(1))
            if self.error.is_of_input:
                self.error.matrix.div_(scale_I)
                self.error.squares.div_(scale_I.square())
        if self.means is not None:
            is_error_of_input = self.error is not None and self.error.is_of_input
            self.means.divide_inputs(scale_I, is_error_of_input)
