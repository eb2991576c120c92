"""Tests of the coverage of intervals of differences, on data whose truth is known."""

import numpy as np
import pytest

from compressor.evaluation import intervals

TRIALS = 600


def paired_scores(generator, count, accuracy, lost, gained):
    """Return new and old 0/1 scores of the same samples, from rates of gains and losses."""
    old = generator.random(count) < accuracy
    new = np.where(old, generator.random(count) >= lost, generator.random(count) < gained)
    return new.astype(float), old.astype(float)


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.005, 0.002), (0.05, 0.03)])
def test_intervals_of_paired_proportions_cover_the_truth_in_about_95_percent(lost, gained):
    generator = np.random.default_rng(1)
    truth = -0.8 * lost + 0.2 * gained
    hits = 0
    for _ in range(TRIALS):
        low, high = intervals.paired_proportion_interval(
            *paired_scores(generator, 500, 0.8, lost, gained)
        )
        hits += low <= truth <= high
    assert hits / TRIALS >= 0.93


def test_pairs_detect_a_loss_that_separate_intervals_do_not():
    generator = np.random.default_rng(2)
    new, old = paired_scores(generator, 2000, 0.8, 0.01, 0.0)
    low, high = intervals.paired_proportion_interval(new, old)
    assert high < 0
    alone = [(x.mean(), (x.mean() - 0.018, x.mean() + 0.018)) for x in (new, old)]
    low, high = intervals.difference_interval(*alone[0], *alone[1])
    assert low < 0 < high


def test_equal_scores_have_an_interval_of_positive_width():
    ones = np.ones(100)
    low, high = intervals.paired_proportion_interval(ones, ones)
    assert low < 0 < high
    assert high < 0.05


@pytest.mark.parametrize(
    ("interval", "truth"), [(intervals.difference_interval, 2.0), (intervals.ratio_interval, 1.2)]
)
def test_intervals_of_independent_means_cover_the_truth_in_about_95_percent(interval, truth):
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(TRIALS):
        sides = []
        for middle in (12.0, 10.0):
            x = generator.normal(middle, 2, 50)
            half = 2.01 * x.std(ddof=1) / 50**0.5
            sides += [x.mean(), (x.mean() - half, x.mean() + half)]
        low, high = interval(*sides)
        hits += low <= truth <= high
    assert 0.92 <= hits / TRIALS <= 0.98


def test_the_paired_bootstrap_covers_the_truth():
    generator = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        common = generator.exponential(1, 300)
        new, old = common + generator.normal(0.1, 0.2, 300), common
        low, high = intervals.paired_mean_interval(
            new, old, lambda a, b: a / b, resamples=400, seed=trial
        )
        hits += low <= 1.1 <= high
    assert hits / 200 >= 0.9


def test_a_ratio_to_an_interval_with_zero_is_unbounded():
    assert intervals.ratio_interval(1.0, (0.9, 1.1), 0.0, (0.0, 0.1)) == (-np.inf, np.inf)
    assert intervals.ratio_interval(1.0, (0.9, 1.1), 0.5, (0.0, 0.9))[1] == np.inf
