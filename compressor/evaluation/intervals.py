"""95 % intervals: of a mean by the bootstrap (of a proportion at its end exactly), of a quantile by order statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TAIL = 0.025
"""How likely the true value may lie beyond each end of a 95 % interval."""
_CHUNK_CELLS = 1 << 22


def bootstrap_mean(values_N: Array, resamples: int, seed: int = 0) -> tuple[float, float] | None:
    """Percentile interval of the mean (Efron & Tibshirani 1993, chapter 13); None for no resamples or no values.

    A resample of N values is drawn by how often each distinct value occurs in it: a multinomial draw, which is the same
    distribution and, for values that are 0 or 1, a thousand times less work. The interval always holds the mean itself.
    """
    if resamples == 0 or len(values_N) == 0:
        return None
    distinct_U, counts_U = np.unique(values_N, return_counts=True)
    generator = np.random.default_rng(seed)
    size = len(values_N)
    means = []
    left = resamples
    while left:
        rows = min(left, max(1, _CHUNK_CELLS // len(distinct_U)))
        means.append(generator.multinomial(size, counts_U / size, size=rows) @ distinct_U / size)
        left -= rows
    low, high = np.quantile(np.concatenate(means), (TAIL, 1 - TAIL))
    mean = float(values_N.mean())
    return min(float(low), mean), max(float(high), mean)


def score_interval(values_N: Array, resamples: int, seed: int = 0) -> tuple[float, float] | None:
    """Interval of the mean of scores.

    Where all answers are right (1), or all wrong (0), no resample differs from another, and the exact binomial interval
    (Clopper & Pearson 1934) stands in for the bootstrap.
    """
    if (
        resamples
        and len(values_N)
        and (values_N.min() == values_N.max())
        and values_N[0] in {0.0, 1.0}
    ):
        furthest = float(TAIL ** (1 / len(values_N)))
        return (furthest, 1.0) if values_N[0] else (0.0, 1 - furthest)
    return bootstrap_mean(values_N, resamples, seed)


def quantile_interval(
    sorted_N: Array, quantile: float, tail: float = TAIL
) -> tuple[float, float] | None:
    """Interval of a quantile between two order statistics (Conover 1999, section 3.2); no distribution is assumed.

    The number of values below the quantile is binomial; ``tail`` is how likely the quantile may lie beyond each end. None
    where so few values cannot bound it, as p99 of 100.
    """
    size = len(sorted_N)
    ranks = np.arange(size + 1)
    logs = np.array(
        [math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1) for k in ranks]
    )
    below = np.exp(
        logs + ranks * math.log(quantile) + (size - ranks) * math.log1p(-quantile)
    ).cumsum()
    # P(fewer than `low` values lie below the quantile) <= tail, P(`high` or more do) <= tail; ranks from 1.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail)) + 1
    if low < 1 or high > size:
        return None
    return float(sorted_N[low - 1]), float(sorted_N[high - 1])
