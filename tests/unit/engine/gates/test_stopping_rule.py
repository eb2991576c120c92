"""Latency gates on synthetic noise: wrong verdicts are as rare as claimed."""

import numpy as np
import pytest

from compressor.engine.gates.stopping_rule import look_schedule, measure_until_clear

LIMIT = 0.8
GATES = 1500


def noisy_rounds(generator, ratio):
    """Ratios of two sides with drift and heavy tails; their median is ``ratio``."""

    def draw_ratio():
        drift = 1 + 0.5 * generator.random()  # slows both sides alike
        new, old = (drift * np.exp(0.15 * generator.standard_t(3)) for _ in range(2))
        return ratio * new / old

    return draw_ratio


def verdicts(ratio, rounds=32, gates=GATES):
    generator = np.random.default_rng(int(1000 * ratio))
    counts = {"passed": 0, "failed": 0, "undecided": 0}
    used = 0
    for _ in range(gates):
        clear = lambda low, high: high <= LIMIT or low > LIMIT  # noqa: E731
        result = measure_until_clear(
            noisy_rounds(generator, ratio), clear, max_rounds=rounds, seconds=1e9
        )
        used += result.count
        counts[
            "passed" if result.high <= LIMIT else "failed" if result.low > LIMIT else "undecided"
        ] += 1
    return {name: count / gates for name, count in counts.items()}, used / gates


def test_at_the_limit_each_wrong_verdict_occurs_in_at_most_3_percent():
    shares, _ = verdicts(LIMIT)
    assert shares["passed"] <= 0.03
    assert shares["failed"] <= 0.03
    assert shares["undecided"] >= 0.94


def test_many_looks_do_not_increase_the_error_rate():
    shares, _ = verdicts(LIMIT, rounds=256, gates=400)
    assert max(shares["passed"], shares["failed"]) <= 0.035


@pytest.mark.parametrize(("ratio", "verdict"), [(0.4, "passed"), (1.6, "failed")])
def test_clear_cases_are_decided_correctly_and_early(ratio, verdict):
    shares, used = verdicts(ratio, gates=200)
    assert shares[verdict] >= 0.99
    assert used < 14


def test_the_time_budget_ends_the_measurement():
    now = iter(range(1000))
    result = measure_until_clear(
        lambda: 1.0 + next(now) % 3,
        lambda *_: False,
        max_rounds=1000,
        seconds=11,
        clock=lambda: next(now),
    )
    assert result.count < 12


def test_too_few_rounds_give_no_interval():
    result = measure_until_clear(lambda: 1.0, lambda *_: True, max_rounds=8, seconds=0)
    assert (result.count, result.low, result.high) == (1, -np.inf, np.inf)


def test_looks_double_up_to_the_maximum():
    assert look_schedule(32) == [8, 16, 32]
    assert look_schedule(20) == [8, 16, 20]
    assert look_schedule(8) == [8]
