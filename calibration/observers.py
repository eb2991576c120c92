"""Observers of activations, which choose the clipping bound of an integer grid.

Shapes: C channels (1 for a whole tensor), N values, B bins, T candidate thresholds.

Grids are symmetric about 0 or start at 0, so only magnitudes matter. An observer uses constant
memory. Two observers of parts of a stream merge into an observer of the whole stream; the result
is exact for all kinds except ``MovingAverage``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

_BINS_EXPONENT = 12
_BINS = 1 << _BINS_EXPONENT
_THRESHOLDS = 256
_VALUES_PER_COUNT = 1 << 23
"""Values counted in one call of ``torch.histc``; their float32 counts are exact."""
_NO_EXPONENT = -(1 << 20)
"""Exponent of a channel in which all values so far are 0."""


class Observer(ABC):
    """Base of all observers: the number of values and the extremes of each channel.

    Subclasses collect further statistics in ``_update`` and choose the clipping bound from them.
    """

    def __init__(self, channels: int = 1) -> None:
        self.count = 0
        """Number of values observed in each channel."""
        self.minimum_C = torch.full((channels,), torch.inf, dtype=torch.float64)
        self.maximum_C = torch.full((channels,), -torch.inf, dtype=torch.float64)

    def observe(self, values_CN: Tensor) -> None:
        """Update the statistics with values [C, N].

        Raises:
            ValueError: the number of channels differs from the observer's, or values are NaN or
                infinite; then nothing is updated.
        """
        if len(values_CN) != len(self.minimum_C):
            raise ValueError(
                f"expected {len(self.minimum_C)} channels, but the values have {len(values_CN)}"
            )
        if not values_CN.shape[1]:
            return
        values_CN = values_CN.detach().float()
        low_C, high_C = torch.aminmax(values_CN, dim=1)  # NaN if any value is NaN
        if not (low_C.isfinite() & high_C.isfinite()).all():
            not_finite = int((~values_CN.isfinite()).sum())
            raise ValueError(f"{not_finite} of {values_CN.numel()} values are NaN or infinite")
        self.count += values_CN.shape[1]
        self.minimum_C = torch.minimum(self.minimum_C, low_C.double())
        self.maximum_C = torch.maximum(self.maximum_C, high_C.double())
        self._update(values_CN, torch.maximum(high_C, -low_C))

    def merge(self, other: Self) -> None:
        """Update the statistics with those of an observer of other values of the same channels."""
        self._merge_state(other)
        self.count += other.count
        self.minimum_C = torch.minimum(self.minimum_C, other.minimum_C)
        self.maximum_C = torch.maximum(self.maximum_C, other.maximum_C)

    @property
    def largest_magnitude(self) -> Tensor:
        """Largest magnitude of each channel, float64; 0 if there are no values."""
        return torch.maximum(self.maximum_C, -self.minimum_C).clamp(min=0)

    @abstractmethod
    def bound(self, levels: int) -> Tensor:
        """Return the magnitude beyond which values are clipped, float64 [C].

        Args:
            levels: steps of the grid between 0 and the bound: 127 for symmetric int8.

        Returns:
            One bound per channel; 0 if all values of the channel are 0.
        """

    def _update(self, values_CN: Tensor, largest_C: Tensor) -> None:  # noqa: ARG002
        """Update the statistics of the subclass with finite values; N is at least 1.

        Args:
            values_CN: the values.
            largest_C: the largest magnitude of each channel among them.
        """
        return

    def _merge_state(self, other: Self) -> None:  # noqa: ARG002
        """Update the statistics of the subclass with those of another observer."""
        return


class MinMax(Observer):
    """Use the largest magnitude as the bound, so that no value is clipped."""

    def bound(self, levels: int) -> Tensor:  # noqa: ARG002
        """Return the largest magnitude."""
        return self.largest_magnitude


class MovingAverage(Observer):
    """Use an exponential moving average of each batch's largest magnitude as the bound.

    Outliers of single batches have less influence than with ``MinMax`` (Jacob et al. 2018, section
    3.1). Merging weights each average by its number of batches, which approximates the average
    over the whole stream.

    Args:
        channels: number of channels.
        decay: weight of the previous average.
    """

    def __init__(self, channels: int = 1, decay: float = 0.9) -> None:
        super().__init__(channels)
        self.decay = decay
        self.batches = 0
        self.average_C = torch.zeros(channels, dtype=torch.float64)

    def bound(self, levels: int) -> Tensor:  # noqa: ARG002
        """Return the moving average."""
        return self.average_C

    def _update(self, values_CN: Tensor, largest_C: Tensor) -> None:  # noqa: ARG002
        largest_C = largest_C.double()
        self.average_C = (
            largest_C if not self.batches else torch.lerp(largest_C, self.average_C, self.decay)
        )
        self.batches += 1

    def _merge_state(self, other: Self) -> None:
        if batches := self.batches + other.batches:
            self.average_C = (
                self.batches * self.average_C + other.batches * other.average_C
            ) / batches
        self.batches += other.batches


class Histogram(Observer):
    """Base of observers that choose the bound from a histogram of magnitudes.

    The width of the bins is a power of two. If a value lies beyond the last bin, bins are merged
    in pairs until it does not, so the counts stay exact, and histograms of different ranges merge
    exactly.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.exponent_C = torch.full((channels,), _NO_EXPONENT)
        """Binary exponent of the upper end of each channel's histogram."""
        self.count_CB = torch.zeros(channels, _BINS, dtype=torch.float64)

    @property
    def bin_width(self) -> Tensor:
        """Width of each channel's bins, float64."""
        ones_C = torch.ones(len(self.exponent_C), dtype=torch.float64)
        return torch.ldexp(ones_C, self.exponent_C) / _BINS

    def _update(self, values_CN: Tensor, largest_C: Tensor) -> None:
        magnitude_CN = values_CN.abs()
        exponent_C = torch.frexp(largest_C).exponent.long()
        self._extend(torch.where(largest_C > 0, exponent_C, _NO_EXPONENT))
        top_C = torch.ldexp(
            torch.ones(len(largest_C), dtype=torch.float64), self.exponent_C.clamp(min=-100)
        )
        for count_B, magnitude_N, top in zip(
            self.count_CB, magnitude_CN, top_C.tolist(), strict=True
        ):
            for chunk_N in magnitude_N.split(_VALUES_PER_COUNT):
                count_B += torch.histc(chunk_N, _BINS, 0.0, top)

    def _merge_state(self, other: Self) -> None:
        self._extend(other.exponent_C)
        self.count_CB += _merge_bins(other.count_CB, self.exponent_C - other.exponent_C)

    def _extend(self, exponent_C: Tensor) -> None:
        """Extend the histograms to at least 2^exponent by merging bins."""
        extended_C = torch.maximum(self.exponent_C, exponent_C)
        self.count_CB = _merge_bins(self.count_CB, extended_C - self.exponent_C)
        self.exponent_C = extended_C

    def bound(self, levels: int) -> Tensor:
        """Return the bound that the histogram gives, at most the largest magnitude."""
        bounds = [
            self._threshold(count_B, levels) * float(width) if exponent > _NO_EXPONENT else 0.0
            for count_B, width, exponent in zip(
                self.count_CB, self.bin_width, self.exponent_C.tolist(), strict=True
            )
        ]
        return torch.minimum(torch.tensor(bounds, dtype=torch.float64), self.largest_magnitude)

    @abstractmethod
    def _threshold(self, count_B: Tensor, levels: int) -> float:
        """Return the bound of one channel in bins."""


def _merge_bins(count_CB: Tensor, doublings_C: Tensor) -> Tensor:
    """Return the counts in bins that are 2^doublings times as wide."""
    bin_CB = torch.arange(_BINS) >> doublings_C.clamp(max=_BINS.bit_length())[:, None]
    return torch.zeros_like(count_CB).scatter_add_(1, bin_CB, count_CB)


def _candidate_thresholds(count_B: Tensor, levels: int) -> Tensor:
    """Return candidate thresholds in bins, int64 [T].

    They range from the finest useful grid, whose steps are one bin wide, to the largest magnitude.
    """
    top = int(count_B.nonzero().max()) + 1
    lowest = min(levels, top)
    grid = torch.linspace(lowest, top, _THRESHOLDS).round().long()
    candidates: Tensor = grid.unique()  # type: ignore[no-untyped-call]
    return candidates


class Percentile(Histogram):
    """Use the smallest bound that is not exceeded by a percentage of the magnitudes.

    Args:
        channels: number of channels.
        percentile: the percentage.
    """

    def __init__(self, channels: int = 1, percentile: float = 99.99) -> None:
        super().__init__(channels)
        self.percentile = percentile

    def _threshold(self, count_B: Tensor, levels: int) -> float:  # noqa: ARG002
        covered = self.percentile / 100 * count_B.sum()
        return float((count_B.cumsum(dim=0) < covered).sum()) + 1


class MeanSquaredError(Histogram):
    """Use the bound with the least squared error of rounding and clipping.

    The error is computed from the histogram, with every value at the middle of its bin.
    """

    def _threshold(self, count_B: Tensor, levels: int) -> float:
        threshold_T = _candidate_thresholds(count_B, levels)
        middle_B = torch.arange(_BINS, dtype=torch.float64) + 0.5
        step_T1 = threshold_T[:, None] / levels
        rounded_TB = (middle_B / step_T1).round().clamp(max=levels) * step_T1
        # Values are uniform within a bin: steps finer than a bin still have the error step² / 12.
        least_T1 = torch.where(step_T1 < 1, step_T1.square() / 12, 0.0)
        error_T = (rounded_TB - middle_B).square().clamp(min=least_T1) @ count_B
        return float(threshold_T[error_T.argmin()])


class Entropy(Histogram):
    """Use the bound with the least divergence between original and quantized values.

    This is the entropy calibration of TensorRT (Migacz 2017); the divergence is Kullback-Leibler's.
    For each candidate threshold, P is the histogram up to the threshold, with the counts beyond it
    added to its last bin. Q is the histogram reduced to ``levels`` bins, each of which is expanded
    evenly over its non-empty original bins. Zeros are excluded, since every grid represents them
    exactly.
    """

    def _threshold(self, count_B: Tensor, levels: int) -> float:
        count_B = count_B.clone()
        count_B[0] = 0
        if not count_B.any():
            return 1.0
        least, best = torch.inf, float(_BINS)
        for threshold in _candidate_thresholds(count_B, levels).tolist():
            inside = count_B[:threshold]
            p = inside.clone()
            p[-1] += count_B[threshold:].sum()
            level = torch.arange(threshold) * levels // threshold
            mass = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, inside)
            filled = (inside > 0).double()
            width = torch.zeros(levels, dtype=torch.float64).scatter_add_(0, level, filled)
            q = filled * (mass / width.clamp(min=1))[level]
            divergence = _divergence(p, q)
            if divergence < least:
                least, best = divergence, float(threshold)
        return best


def _divergence(p_B: Tensor, q_B: Tensor) -> float:
    """Return KL(P ‖ Q) of two histograms.

    Bins that are empty in Q but not in P get a ten-thousandth of Q's mean count.
    """
    p_B = p_B / p_B.sum()
    q_B = torch.where((p_B > 0) & (q_B == 0), 1e-4 * q_B.sum() / len(q_B), q_B)
    q_B = q_B / q_B.sum()
    filled_B = p_B > 0
    return float((p_B[filled_B] * (p_B[filled_B] / q_B[filled_B]).log()).sum())


OBSERVERS: dict[str, type[Observer]] = {
    "min-max": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
}


def create_observer(kind: str, channels: int = 1, **options: Any) -> Observer:
    """Return a new observer.

    Args:
        kind: a key of ``OBSERVERS``.
        channels: number of channels.
        options: further arguments of the class, such as ``percentile``.
    """
    return OBSERVERS[kind](channels, **options)
