"""What a stream of values needs of an integer grid: the bound beyond which values are clipped.

Shapes: C channels (1 for a whole tensor), N values, B bins, T thresholds. Grids are symmetric about 0 (or start at 0), so only
magnitudes count. Every observer takes constant memory, and two that saw parts of a stream merge into one that saw all of it:
exactly, for all but the moving average.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

_BINS_EXPONENT = 12
_BINS = 1 << _BINS_EXPONENT
_THRESHOLDS = 256
_COUNTED_AT_ONCE = 1 << 23
"""Values of which a count in float32 is exact."""
_NONE_YET = -(1 << 20)
"""Exponent of a channel that has seen zeros alone."""


class Observer(ABC):
    """Counts, extremes, and what a subclass remembers besides."""

    def __init__(self, channels: int = 1) -> None:
        self.count = 0
        """Values seen in each channel."""
        self.minimum_C = torch.full((channels,), torch.inf, dtype=torch.float64)
        self.maximum_C = torch.full((channels,), -torch.inf, dtype=torch.float64)

    def see(self, values_CN: Tensor) -> None:
        """Take in more values.

        Raises:
            ValueError: some are NaN or infinite, or there are other channels than before.
        """
        if len(values_CN) != len(self.minimum_C):
            raise ValueError(f"{len(values_CN)} channels where there were {len(self.minimum_C)}")
        if not values_CN.shape[1]:
            return
        values_CN = values_CN.detach().float()
        low_C, high_C = (
            values_CN.amin(dim=1),
            values_CN.amax(dim=1),
        )  # both are NaN where one value is
        if not (low_C.isfinite() & high_C.isfinite()).all():
            bad = int((~values_CN.isfinite()).sum())
            raise ValueError(f"{bad} of {values_CN.numel()} values are NaN or infinite")
        self.count += values_CN.shape[1]
        self.minimum_C = torch.minimum(self.minimum_C, low_C.double())
        self.maximum_C = torch.maximum(self.maximum_C, high_C.double())
        self._remember(values_CN)

    def merge(self, other: Self) -> None:
        """Take in what another one saw."""
        self._remember_too(other)
        self.count += other.count
        self.minimum_C = torch.minimum(self.minimum_C, other.minimum_C)
        self.maximum_C = torch.maximum(self.maximum_C, other.maximum_C)

    @property
    def largest(self) -> Tensor:
        """The largest magnitude, 0 where nothing was seen."""
        return torch.maximum(self.maximum_C, -self.minimum_C).clamp(min=0)

    @abstractmethod
    def bound(self, levels: int) -> Tensor:
        """Where to clip, float64 [C], for a grid of ``levels`` steps between 0 and the bound; 0 where all values are."""

    def _remember(self, values_CN: Tensor) -> None:  # noqa: ARG002
        """Finite values, one at least."""
        return

    def _remember_too(self, other: Self) -> None:  # noqa: ARG002
        """What another one remembers."""
        return


class MinMax(Observer):
    """Nothing is clipped."""

    def bound(self, levels: int) -> Tensor:  # noqa: ARG002
        """See ``Observer``."""
        return self.largest


class MovingAverage(Observer):
    """The largest magnitude of each batch, averaged exponentially, so that outliers count for less (Jacob et al. 2018, 3.1).

    Merged, each part counts by its number of batches: near to the average over all, not equal to it.
    """

    def __init__(self, channels: int = 1, decay: float = 0.9) -> None:
        super().__init__(channels)
        self.decay = decay
        self.batches = 0
        self.average_C = torch.zeros(channels, dtype=torch.float64)

    def bound(self, levels: int) -> Tensor:  # noqa: ARG002
        """See ``Observer``."""
        return self.average_C

    def _remember(self, values_CN: Tensor) -> None:
        largest_C = values_CN.abs().amax(dim=1).double()
        self.average_C = (
            largest_C if not self.batches else torch.lerp(largest_C, self.average_C, self.decay)
        )
        self.batches += 1

    def _remember_too(self, other: Self) -> None:
        if batches := self.batches + other.batches:
            self.average_C = (
                self.batches * self.average_C + other.batches * other.average_C
            ) / batches
        self.batches += other.batches


class Histogram(Observer):
    """Magnitudes in bins whose width is a power of two, so that histograms of any ranges add up exactly.

    Where a value lies beyond the last bin, bins are joined in pairs until it does not: what was counted stays exact.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.exponent_C = torch.full((channels,), _NONE_YET)
        """All magnitudes are less than 2 to the power of it."""
        self.count_CB = torch.zeros(channels, _BINS, dtype=torch.float64)

    @property
    def widths(self) -> Tensor:
        """Width of a channel's bins."""
        return (
            torch.ldexp(torch.ones(len(self.exponent_C), dtype=torch.float64), self.exponent_C)
            / _BINS
        )

    def _remember(self, values_CN: Tensor) -> None:
        magnitude_CN = values_CN.abs()
        largest_C = magnitude_CN.amax(dim=1)
        self._widen(torch.where(largest_C > 0, torch.frexp(largest_C).exponent.long(), _NONE_YET))
        top_C = torch.ldexp(
            torch.ones(len(largest_C), dtype=torch.float64), self.exponent_C.clamp(min=-100)
        )
        for count_B, magnitude_N, top in zip(
            self.count_CB, magnitude_CN, top_C.tolist(), strict=True
        ):
            for some in magnitude_N.split(_COUNTED_AT_ONCE):
                count_B += torch.histc(some, _BINS, 0.0, top)

    def _remember_too(self, other: Self) -> None:
        self._widen(other.exponent_C)
        self.count_CB += _joined(other.count_CB, self.exponent_C - other.exponent_C)

    def _widen(self, exponent_C: Tensor) -> None:
        wider_C = torch.maximum(self.exponent_C, exponent_C)
        self.count_CB = _joined(self.count_CB, wider_C - self.exponent_C)
        self.exponent_C = wider_C

    def bound(self, levels: int) -> Tensor:
        """See ``Observer``; never more than the largest magnitude."""
        chosen = [
            self._threshold(count_B, levels) * float(width) if exponent > _NONE_YET else 0.0
            for count_B, width, exponent in zip(
                self.count_CB, self.widths, self.exponent_C.tolist(), strict=True
            )
        ]
        return torch.minimum(torch.tensor(chosen, dtype=torch.float64), self.largest)

    @abstractmethod
    def _threshold(self, count_B: Tensor, levels: int) -> float:
        """Where to clip one channel, in bins from 0."""


def _joined(count_CB: Tensor, times_C: Tensor) -> Tensor:
    """The same counts in bins that are 2^times as wide."""
    place_CB = torch.arange(_BINS) >> times_C.clamp(max=_BINS.bit_length())[:, None]
    return torch.zeros_like(count_CB).scatter_add_(1, place_CB, count_CB)


def _thresholds(count_B: Tensor, levels: int) -> Tensor:
    """Candidates in bins: from a grid as fine as the bins to the largest magnitude."""
    top = int(count_B.nonzero().max()) + 1
    found: Tensor = torch.linspace(min(levels, top), top, _THRESHOLDS).round().long().unique()  # type: ignore[no-untyped-call]
    return found


class Percentile(Histogram):
    """The smallest bound that a part of all values keeps within."""

    def __init__(self, channels: int = 1, percentile: float = 99.99) -> None:
        super().__init__(channels)
        self.percentile = percentile

    def _threshold(self, count_B: Tensor, levels: int) -> float:  # noqa: ARG002
        wanted = self.percentile / 100 * count_B.sum()
        return float((count_B.cumsum(dim=0) < wanted).sum()) + 1


class MeanSquaredError(Histogram):
    """The bound with the least squared error of rounding and clipping together, every value taken at the middle of its bin."""

    def _threshold(self, count_B: Tensor, levels: int) -> float:
        threshold_T = _thresholds(count_B, levels)
        middle_B = torch.arange(_BINS, dtype=torch.float64) + 0.5
        step_T1 = threshold_T[:, None] / levels
        rounded_TB = (middle_B / step_T1).round().clamp(max=levels) * step_T1
        # Within a bin values are spread evenly: a step finer than the bin still costs a twelfth of its square.
        least_T1 = torch.where(step_T1 < 1, step_T1.square() / 12, 0.0)
        error_T = (rounded_TB - middle_B).square().clamp(min=least_T1) @ count_B
        return float(threshold_T[error_T.argmin()])


class Entropy(Histogram):
    """The bound whose clipped and rounded distribution is nearest to the one that was seen, by the Kullback-Leibler divergence.

    As TensorRT's calibration by entropy (Migacz 2017): for each threshold, P is the histogram with all that lies beyond in its
    last bin, Q the histogram told by ``levels`` bins alone, spread over the bins that hold something. Zeros, which every grid
    holds, do not count.
    """

    def _threshold(self, count_B: Tensor, levels: int) -> float:
        count_B = count_B.clone()
        count_B[0] = 0
        if not count_B.any():
            return 1.0
        best, chosen = torch.inf, float(_BINS)
        for threshold in _thresholds(count_B, levels).tolist():
            inside = count_B[:threshold]
            p = inside.clone()
            p[-1] += count_B[threshold:].sum()
            level = torch.arange(threshold) * levels // threshold
            mass = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, inside)
            filled = (inside > 0).double()
            width = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, filled)
            q = filled * (mass / width.clamp(min=1))[level]
            divergence = _divergence(p, q)
            if divergence < best:
                best, chosen = divergence, float(threshold)
        return chosen


def _divergence(p_B: Tensor, q_B: Tensor) -> float:
    """KL of two histograms; what P has and Q lacks counts as a ten-thousandth of Q's mean."""
    p_B = p_B / p_B.sum()
    q_B = torch.where((p_B > 0) & (q_B == 0), 1e-4 * q_B.sum() / len(q_B), q_B)
    q_B = q_B / q_B.sum()
    seen = p_B > 0
    return float((p_B[seen] * (p_B[seen] / q_B[seen]).log()).sum())


OBSERVERS: dict[str, type[Observer]] = {
    "min-max": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
}


def observer(kind: str, channels: int = 1, **options: Any) -> Observer:
    """A new observer of a kind in ``OBSERVERS``."""
    return OBSERVERS[kind](channels, **options)
