"""95 % intervals of a difference or a ratio of two figures: in pairs on the same samples, or from the interval of each.

Shapes: N samples, the same and in the same order on both sides; R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressor.evaluation.intervals import TAIL

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

_Z = 1.959964
"""Quantile of the normal distribution above which 2.5 % lie."""
_CHUNK_CELLS = 1 << 22


def paired_shares(new_N: Array, old_N: Array) -> Interval:
    """Of the difference new - old of two shares of the same samples, each 0 or 1.

    The adjusted Wald interval of Bonett & Price (2012): one sample is added to each way in which the two can disagree, so that it
    holds its 95 % where few do, and is no point where none does.
    """
    count = len(new_N)
    gained = (int(np.sum(new_N > old_N)) + 1) / (count + 2)
    lost = (int(np.sum(new_N < old_N)) + 1) / (count + 2)
    half = _Z * math.sqrt((gained + lost - (gained - lost) ** 2) / (count + 2))
    return gained - lost - half, gained - lost + half


def paired_means(
    new_N: Array,
    old_N: Array,
    figure: Callable[[Array, Array], Array],
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Of ``figure`` of two means, by the bootstrap of pairs (Efron & Tibshirani 1993, chapter 8).

    Args:
        new_N: values of one side.
        old_N: values of the other.
        figure: the means of both sides, [R] each, to what is asked for, [R].
        resamples: how many.
        seed: of the draw.
    """
    found = np.concatenate([figure(*means) for means in _resampled(new_N, old_N, resamples, seed)])
    seen = float(figure(np.array([new_N.mean()]), np.array([old_N.mean()]))[0])
    low, high = np.quantile(found, (TAIL, 1 - TAIL))
    return min(float(low), seen), max(float(high), seen)


def _resampled(
    new_N: Array, old_N: Array, resamples: int, seed: int
) -> Iterator[tuple[Array, Array]]:
    generator = np.random.default_rng(seed)
    size = len(new_N)
    rows = max(1, _CHUNK_CELLS // size)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, size, (min(rows, resamples - start), size))
        yield new_N[drawn].mean(axis=1), old_N[drawn].mean(axis=1)


def difference(new: float, new_interval: Interval, old: float, old_interval: Interval) -> Interval:
    """Of new - old of two independent figures, from the interval of each (MOVER, Zou & Donner 2008, equation 3)."""
    middle = new - old
    low = math.hypot(new - new_interval[0], old_interval[1] - old)
    high = math.hypot(new_interval[1] - new, old - old_interval[0])
    return middle - low, middle + high


def ratio(new: float, new_interval: Interval, old: float, old_interval: Interval) -> Interval:
    """Of new / old of two independent positive figures: the difference of their logarithms.

    Where an interval reaches down to 0, the ratio is not bounded on that side.
    """
    if min(new, old) <= 0:
        return (-math.inf, math.inf)
    logs = [_log(value) for value in (*new_interval, *old_interval)]
    low, high = difference(math.log(new), (logs[0], logs[1]), math.log(old), (logs[2], logs[3]))
    return math.exp(low), (math.exp(high) if high < _LARGEST_LOG else math.inf)


_LARGEST_LOG = 700.0


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
