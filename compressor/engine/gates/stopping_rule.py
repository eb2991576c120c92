"""Sequential measurement: rounds until an interval is clear of a limit, or a budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compressor.evaluation.intervals import TAIL, quantile_interval

FIRST_LOOK = 8
"""Rounds before the interval is computed for the first time."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Result of a number of rounds."""

    median: float
    low: float
    high: float
    count: int


def look_schedule(max_rounds: int) -> list[int]:
    """Return the round counts at which the interval is computed: 8, 16, 32, …, ``max_rounds``."""
    schedule = []
    count = FIRST_LOOK
    while count < max_rounds:
        schedule.append(count)
        count *= 2
    return [*schedule, max_rounds]


def measure_until_clear(
    measure_round: Callable[[], float],
    is_clear: Callable[[float, float], bool],
    *,
    max_rounds: int,
    seconds: float,
    progress: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Rounds:
    """Return the median over rounds, with a distribution-free interval between order statistics.

    Repeated looks at the same data would inflate the error. So each of the k possible looks takes
    1/k of the 5 % (Bonferroni): the final interval misses the true median in at most 5 % of all
    cases, 2.5 % on each side, as far as rounds are independent.

    Args:
        measure_round: measures one round and returns its value.
        is_clear: returns True if the interval from low to high is clear of the limit.
        max_rounds: maximum number of rounds.
        seconds: no round starts after so many seconds.
        progress: called with the number of rounds done.
        clock: returns seconds.
    """
    schedule = look_schedule(max_rounds)
    tail = TAIL / len(schedule)
    deadline = clock() + seconds
    values: list[float] = []
    while True:
        values.append(measure_round())
        progress(len(values))
        is_last = clock() >= deadline or len(values) >= max_rounds
        if len(values) in schedule or is_last:
            ordered = np.sort(np.asarray(values))
            low, high = quantile_interval(ordered, 0.5, tail) or (-np.inf, np.inf)
            if is_last or is_clear(low, high):
                return Rounds(float(np.median(ordered)), float(low), float(high), len(values))
