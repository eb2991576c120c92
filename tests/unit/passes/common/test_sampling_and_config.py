"""The order of samples and the learning rate: pure functions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from passes.common.config import TrainingConfig
from passes.common.sampling import Sampler, epoch_order


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_every_sample_once(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch))


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=40), st.integers(0, 5))
def test_weighted_samples_come_as_often_as_they_weigh(weights, epoch):
    weights = np.array(weights)
    counts = np.bincount(epoch_order(len(weights), 0, epoch, weights), minlength=len(weights))
    expected = weights / weights.sum() * len(weights)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12), st.booleans())
def test_a_restored_sampler_goes_on(count, size, taken, weighted):
    sampler = Sampler(count, size, 3)
    for step in range(taken):
        sampler.next()
        if weighted and step == 2:
            sampler.reweigh(np.arange(1.0, count + 1))
    other = Sampler(count, size, 3)
    other.restore(sampler.state())
    for _ in range(5):
        (ours, epoch), (theirs, other_epoch) = sampler.next(), other.next()
        assert np.array_equal(ours, theirs)
        assert epoch == other_epoch


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls(schedule):
    config = TrainingConfig(steps=100, learning_rate=1.0, schedule=schedule, warmup=0.1, final=0.05)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0.05, abs=0.02))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": "7"}, {"learning_rate": 0.0}, {"warmup": 2.0}, {"step": 1}]
)
def test_recipes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainingConfig(**wrong)
