"""How long to measure: rounds until an interval is clear of a limit, or a budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compressor.evaluation.intervals import TAIL, quantile_interval

FIRST_LOOK = 8
"""Rounds before the first look."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What some rounds gave."""

    median: float
    low: float
    high: float
    count: int


def looks(most: int) -> list[int]:
    """After how many rounds the interval is looked at: 8, 16, 32 … and last after ``most``."""
    found = []
    at = FIRST_LOOK
    while at < most:
        found.append(at)
        at *= 2
    return [*found, most]


def play(
    one: Callable[[], float],
    clear: Callable[[float, float], bool],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Rounds:
    """The median over rounds, with an interval between two order statistics, which assumes no distribution.

    Looking again and again would find what is not there. So each of the k looks that there can be takes 1/k of the 5 %
    (Bonferroni): the interval of the look that ends it misses the true median in at most 5 % of all cases, 2.5 % on each side,
    as far as rounds are independent of each other.

    Args:
        one: plays a round and gives its figure.
        clear: whether an interval from low to high is clear of the limit.
        rounds: how many there may be.
        seconds: after which no further round begins.
        progress: told how many rounds are done.
        clock: seconds.
    """
    planned = looks(rounds)
    tail = TAIL / len(planned)
    until = clock() + seconds
    values: list[float] = []
    while True:
        values.append(one())
        progress(len(values))
        spent = clock() >= until or len(values) >= rounds
        if len(values) in planned or spent:
            found = np.sort(np.asarray(values))
            low, high = quantile_interval(found, 0.5, tail) or (-np.inf, np.inf)
            if spent or clear(low, high):
                return Rounds(float(np.median(found)), float(low), float(high), len(values))
