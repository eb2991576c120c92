"""Order of the samples of a training."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from passes.common.sampling import Sampler, epoch_order


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once_in_a_reproducible_order(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch))


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=40), st.integers(0, 5))
def test_weighted_samples_are_drawn_in_proportion_to_their_weights(weights, epoch):
    weights = np.array(weights)
    counts = np.bincount(epoch_order(len(weights), 0, epoch, weights), minlength=len(weights))
    expected = weights / weights.sum() * len(weights)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12), st.booleans())
def test_a_restored_sampler_continues_at_its_position(count, size, taken, weighted):
    sampler = Sampler(count, size, 3)
    for step in range(taken):
        sampler.next()
        if weighted and step == 2:
            sampler.reweigh(np.arange(1.0, count + 1))
    restored = Sampler(count, size, 3)
    restored.restore(sampler.state())
    for _ in range(5):
        (indices, epoch), (restored_indices, restored_epoch) = sampler.next(), restored.next()
        assert np.array_equal(indices, restored_indices)
        assert epoch == restored_epoch
