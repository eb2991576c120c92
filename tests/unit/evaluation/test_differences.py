"""The intervals of differences hold what they claim to, on data whose truth is known."""

import numpy as np
import pytest

from compressor.evaluation import differences

TRIALS = 600


def paired(generator, count, right, lost, gained):
    """Answers of two models to the same samples: the first is right on ``right`` of them, the second loses and gains some."""
    old = generator.random(count) < right
    new = np.where(old, generator.random(count) >= lost, generator.random(count) < gained)
    return new.astype(float), old.astype(float)


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.005, 0.002), (0.05, 0.03)])
def test_paired_shares_hold_the_truth_in_95_of_100(lost, gained):
    generator = np.random.default_rng(1)
    truth = -0.8 * lost + 0.2 * gained
    held = 0
    for _ in range(TRIALS):
        low, high = differences.paired_shares(*paired(generator, 500, 0.8, lost, gained))
        held += low <= truth <= high
    assert held / TRIALS >= 0.93


def test_pairs_tell_what_intervals_of_each_do_not():
    generator = np.random.default_rng(2)
    new, old = paired(generator, 2000, 0.8, 0.01, 0.0)
    low, high = differences.paired_shares(new, old)
    assert high < 0
    alone = [(x.mean(), (x.mean() - 0.018, x.mean() + 0.018)) for x in (new, old)]
    low, high = differences.difference(*alone[0], *alone[1])
    assert low < 0 < high


def test_equal_answers_are_no_proof_of_equal_models():
    ones = np.ones(100)
    low, high = differences.paired_shares(ones, ones)
    assert low < 0 < high
    assert high < 0.05


@pytest.mark.parametrize("how", ["difference", "ratio"])
def test_independent_figures(how):
    """Two means with t-like intervals; the difference and the ratio are held in about 95 of 100."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(TRIALS):
        sides = []
        for middle in (12.0, 10.0):
            x = generator.normal(middle, 2, 50)
            half = 2.01 * x.std(ddof=1) / 50**0.5
            sides += [x.mean(), (x.mean() - half, x.mean() + half)]
        low, high = getattr(differences, how)(*sides)
        held += low <= (2.0 if how == "difference" else 1.2) <= high
    assert 0.92 <= held / TRIALS <= 0.98


def test_the_bootstrap_of_pairs():
    generator = np.random.default_rng(4)
    held = 0
    for trial in range(200):
        hard = generator.exponential(1, 300)
        new, old = hard + generator.normal(0.1, 0.2, 300), hard
        low, high = differences.paired_means(
            new, old, lambda a, b: a / b, resamples=400, seed=trial
        )
        held += low <= 1.1 <= high
    assert held / 200 >= 0.9


def test_a_ratio_to_nothing_is_not_bounded():
    assert differences.ratio(1.0, (0.9, 1.1), 0.0, (0.0, 0.1)) == (-np.inf, np.inf)
    assert differences.ratio(1.0, (0.9, 1.1), 0.5, (0.0, 0.9))[1] == np.inf
