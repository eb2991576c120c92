"""95 % confidence intervals of means, proportions, quantiles, differences and ratios.

Shapes: N samples, the same and in the same order on both sides of a comparison; U distinct values;
R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

TAIL = 0.025
"""Probability that the true value lies beyond one end of a 95 % interval."""
_Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""
_CHUNK_VALUES = 1 << 22
"""Values of the resamples that are in memory at once."""
_MAX_LOG = 700.0
"""Logarithms above this would overflow a float64."""


def bootstrap_mean_interval(values_N: Array, resamples: int, seed: int = 0) -> Interval | None:
    """Return the percentile interval of the mean (Efron & Tibshirani 1993, chapter 13).

    A resample of N values is drawn as the count of each distinct value: a multinomial draw, which
    has the same distribution and, for values that are 0 or 1, costs a thousand times less. The
    interval is widened to contain the mean itself.

    Args:
        values_N: the sample.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        The interval; None without resamples or values.
    """
    if resamples == 0 or len(values_N) == 0:
        return None
    distinct_U, counts_U = np.unique(values_N, return_counts=True)
    generator = np.random.default_rng(seed)
    size = len(values_N)
    means = []
    remaining = resamples
    while remaining:
        rows = min(remaining, max(1, _CHUNK_VALUES // len(distinct_U)))
        means.append(generator.multinomial(size, counts_U / size, size=rows) @ distinct_U / size)
        remaining -= rows
    low, high = np.quantile(np.concatenate(means), (TAIL, 1 - TAIL))
    mean = float(values_N.mean())
    return min(float(low), mean), max(float(high), mean)


def proportion_interval(values_N: Array, resamples: int, seed: int = 0) -> Interval | None:
    """Return the interval of the mean of values between 0 and 1.

    If all values are 1, or all are 0, every resample is the same, so the exact binomial interval
    (Clopper & Pearson 1934) replaces the bootstrap. Arguments as for ``bootstrap_mean_interval``.
    """
    if (
        resamples
        and len(values_N)
        and (values_N.min() == values_N.max())
        and values_N[0] in {0.0, 1.0}
    ):
        bound = float(TAIL ** (1 / len(values_N)))
        return (bound, 1.0) if values_N[0] else (0.0, 1 - bound)
    return bootstrap_mean_interval(values_N, resamples, seed)


def quantile_interval(sorted_N: Array, quantile: float, tail: float = TAIL) -> Interval | None:
    """Return the interval of a quantile between two order statistics (Conover 1999, section 3.2).

    The number of values below the quantile is binomial; no distribution of the values is assumed.

    Args:
        sorted_N: the sample in ascending order.
        quantile: the quantile, between 0 and 1.
        tail: probability that the quantile lies beyond one end.

    Returns:
        The interval; None if there are too few values to bound it, as for p99 of 100.
    """
    size = len(sorted_N)
    ranks = np.arange(size + 1)
    log_binomial = np.array(
        [math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1) for k in ranks]
    )
    log_probability = log_binomial + ranks * math.log(quantile)
    below = np.exp(log_probability + (size - ranks) * math.log1p(-quantile)).cumsum()
    # P(fewer than `low` values lie below the quantile) <= tail, P(`high` or more do) <= tail;
    # ranks start at 1.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail)) + 1
    if low < 1 or high > size:
        return None
    return float(sorted_N[low - 1]), float(sorted_N[high - 1])


def paired_proportion_interval(new_N: Array, old_N: Array) -> Interval:
    """Return the interval of the difference new − old of two proportions on the same samples.

    The adjusted Wald interval of Bonett & Price (2012): one sample is added to each of the two ways
    to disagree. It keeps its coverage of 95 % where few samples disagree, and has a width above 0
    where none does.

    Args:
        new_N: 0 or 1 for each sample.
        old_N: 0 or 1 for each sample.
    """
    count = len(new_N)
    gained = (int(np.sum(new_N > old_N)) + 1) / (count + 2)
    lost = (int(np.sum(new_N < old_N)) + 1) / (count + 2)
    half = _Z * math.sqrt((gained + lost - (gained - lost) ** 2) / (count + 2))
    return gained - lost - half, gained - lost + half


def paired_mean_interval(
    new_N: Array,
    old_N: Array,
    statistic: Callable[[Array, Array], Array],
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the interval of a statistic of two means (Efron & Tibshirani 1993, chapter 8).

    Pairs of values are resampled together; the interval is widened to contain the statistic of the
    sample itself.

    Args:
        new_N: values of one side.
        old_N: values of the other side.
        statistic: maps the means of both sides, [R] each, to the statistic, [R].
        resamples: number of resamples.
        seed: seed of the resampling.
    """
    draws = np.concatenate(
        [statistic(*means) for means in _resampled_means(new_N, old_N, resamples, seed)]
    )
    observed = float(statistic(np.array([new_N.mean()]), np.array([old_N.mean()]))[0])
    method: Literal["linear", "inverted_cdf"] = "linear"
    if not np.isfinite(draws).all():  # nothing lies between infinities
        method = "inverted_cdf"
    low, high = np.quantile(draws, (TAIL, 1 - TAIL), method=method)
    return min(float(low), observed), max(float(high), observed)


def _resampled_means(
    new_N: Array, old_N: Array, resamples: int, seed: int
) -> Iterator[tuple[Array, Array]]:
    generator = np.random.default_rng(seed)
    size = len(new_N)
    rows = max(1, _CHUNK_VALUES // size)
    for start in range(0, resamples, rows):
        indices = generator.integers(0, size, (min(rows, resamples - start), size))
        yield new_N[indices].mean(axis=1), old_N[indices].mean(axis=1)


def difference_interval(
    new: float, new_interval: Interval, old: float, old_interval: Interval
) -> Interval:
    """Return the interval of new − old of two independent estimates, from the interval of each.

    MOVER (Zou & Donner 2008, equation 3).
    """
    difference = new - old
    low = math.hypot(new - new_interval[0], old_interval[1] - old)
    high = math.hypot(new_interval[1] - new, old - old_interval[0])
    return difference - low, difference + high


def ratio_interval(
    new: float, new_interval: Interval, old: float, old_interval: Interval
) -> Interval:
    """Return the interval of new / old of two independent positive estimates.

    The difference of their logarithms; unbounded on a side where an interval includes 0.
    """
    if min(new, old) <= 0:
        return (-math.inf, math.inf)
    logs = [_log(value) for value in (*new_interval, *old_interval)]
    low, high = difference_interval(
        math.log(new), (logs[0], logs[1]), math.log(old), (logs[2], logs[3])
    )
    return math.exp(low), (math.exp(high) if high < _MAX_LOG else math.inf)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
