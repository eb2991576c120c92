"""Correction of biases: the mean error of a layer's result is added to its bias.

Nagel et al. 2019, arXiv:1906.04721, section 4.2. An error that is equal for all samples changes
every answer in the same direction, and few samples determine it.

Shapes: S parts of the samples, N positions, I inputs, O outputs, T targets of the error.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_PARTS = 4
"""Parts of a batch whose means are kept: its samples, or several at a time."""
_MAX_PARTS = 256
"""Beyond this number, the means of two parts at a time become one."""
_TINY = 1e-30


@dataclass(slots=True)
class SampleMeans:
    """Means of a site's inputs and errors over parts of the calibration samples."""

    inputs_SI: list[Tensor] = field(default_factory=list)
    errors_ST: list[Tensor] = field(default_factory=list)
    """Means of the errors of ``ErrorMoments``."""
    counts_S: list[int] = field(default_factory=list)
    """Positions of each part."""

    def add(self, x_NI: Tensor, error_NT: Tensor) -> None:
        """Add the positions of a batch, which are in the order of its samples."""
        parts = min(_PARTS, len(x_NI))
        if not parts:
            return
        splits = zip(x_NI.tensor_split(parts), error_NT.tensor_split(parts), strict=True)
        for x_MI, error_MT in splits:
            self.inputs_SI.append(x_MI.mean(dim=0))
            self.errors_ST.append(error_MT.mean(dim=0))
            self.counts_S.append(len(x_MI))
        if len(self.counts_S) > _MAX_PARTS:
            self.inputs_SI = _join_pairs(self.inputs_SI, self.counts_S)
            self.errors_ST = _join_pairs(self.errors_ST, self.counts_S)
            self.counts_S = [
                sum(self.counts_S[start : start + 2]) for start in range(0, len(self.counts_S), 2)
            ]

    def divide_inputs(self, scale_I: Tensor, is_error_of_input: bool) -> None:
        """Turn the means into those of x / scale; see ``InputStatistics``."""
        self.inputs_SI = [mean_I / scale_I for mean_I in self.inputs_SI]
        if is_error_of_input:
            self.errors_ST = [mean_I / scale_I for mean_I in self.errors_ST]


def _join_pairs(means: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Return the mean of each two neighbours, weighted by their positions."""
    joined = []
    for start in range(0, len(means), 2):
        weights = torch.tensor(counts[start : start + 2], dtype=torch.float32)
        joined.append(weights @ torch.stack(means[start : start + 2]) / weights.sum())
    return joined


def reliable_mean(errors_SO: Tensor, counts_S: list[int]) -> Tensor:
    """Return the mean error of each output, less the share that is noise, [O].

    The mean m is multiplied by 1 − Var(m) / m², at least 0, where the differences between parts
    estimate Var(m): the factor with the least expected error on other samples. With a single part,
    or none, the result is 0.
    """
    if len(counts_S) < 2:
        return torch.zeros(errors_SO.shape[1])
    weight_S = torch.tensor(counts_S, dtype=torch.float32)
    weight_S /= weight_S.sum()
    mean_O = weight_S @ errors_SO
    spread_O = weight_S @ (errors_SO - mean_O).square()
    share = float(weight_S.square().sum())
    noise_O = spread_O * share / (1 - share)
    return mean_O * (1 - noise_O / mean_O.square().clamp(min=_TINY)).clamp(min=0)
