"""Observers: parts merge into the whole, bounds are what they claim, and bad values are told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.observers import (
    OBSERVERS,
    Entropy,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    observer,
)

EXACT = [kind for kind in OBSERVERS if kind != "moving-average"]
STREAMS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), min_size=2, max_size=5
)  # batches of one channel


def seen(kind, batches, channels=1):
    one = observer(kind, channels)
    for batch in batches:
        one.see(torch.tensor(batch, dtype=torch.float32).reshape(channels, -1))
    return one


@settings(deadline=None, max_examples=40)
@given(STREAMS, st.sampled_from(EXACT), st.data())
def test_parts_merge_into_what_saw_all(batches, kind, data):
    cut = data.draw(st.integers(0, len(batches)))
    whole, first, second = seen(kind, batches), seen(kind, batches[:cut]), seen(kind, batches[cut:])
    first.merge(second)
    for name, value in vars(whole).items():
        mine = vars(first)[name]
        assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value, name
    assert torch.equal(first.bound(127), whole.bound(127))


@settings(deadline=None, max_examples=40)
@given(STREAMS, st.sampled_from(list(OBSERVERS)))
def test_a_bound_is_never_beyond_what_was_seen_nor_below_nothing(batches, kind):
    one = seen(kind, batches)
    largest = max(abs(value) for batch in batches for value in batch)
    assert one.largest.item() == pytest.approx(largest)
    assert one.count == sum(map(len, batches))
    assert 0 <= one.bound(127).item() <= largest * (1 + 1e-9)


def test_channels_are_observed_apart():
    for kind in OBSERVERS:
        both = observer(kind, 2)
        torch.manual_seed(0)
        values = torch.randn(2, 5000) * torch.tensor([[1.0], [300.0]])
        both.see(values)
        alone = [seen(kind, [row.tolist()]).bound(127).item() for row in values]
        assert both.bound(127).tolist() == pytest.approx(alone, rel=1e-6), kind


def test_min_max_and_the_moving_average():
    assert seen("min-max", [[1.0, -3.0], [2.0]]).bound(127).item() == 3.0
    average = MovingAverage(decay=0.9)
    for value in (1.0, 11.0):
        average.see(torch.tensor([[value]]))
    assert average.bound(127).item() == pytest.approx(2.0)
    other = MovingAverage()
    other.see(torch.tensor([[5.0]]))
    average.merge(other)
    assert average.bound(127).item() == pytest.approx((2 * 2.0 + 5.0) / 3)


def test_a_percentile_keeps_its_part():
    torch.manual_seed(0)
    values = torch.rand(1, 100_000)
    one = Percentile(percentile=90.0)
    one.see(values)
    assert one.bound(127).item() == pytest.approx(0.9, abs=0.01)
    assert (values.abs() <= one.bound(127)).double().mean() >= 0.9


def outliers():
    torch.manual_seed(0)
    values = torch.randn(1, 200_000)
    values[0, 0] = 60.0
    return values


def test_the_squared_error_is_nearly_the_least_there_is():
    values = outliers()
    one = MeanSquaredError()
    one.see(values)

    def error(bound):
        step = bound / 127
        return ((values / step).round().clamp(-127, 127) * step - values).square().mean().item()

    least = min(error(bound) for bound in torch.linspace(2, 60, 400).tolist())
    assert error(one.bound(127).item()) <= 1.03 * least
    assert error(60.0) > 1.5 * least


def test_entropy_clips_outliers_and_keeps_what_is_even():
    one = Entropy()
    one.see(outliers())
    assert 2.5 < one.bound(127).item() < 12
    even = Entropy()
    torch.manual_seed(0)
    even.see(torch.rand(1, 200_000))
    assert even.bound(127).item() > 0.9


def test_zeros_have_a_bound_of_zero():
    for kind in OBSERVERS:
        assert seen(kind, [[0.0, 0.0]]).bound(127).item() == 0.0, kind


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_counted(bad):
    with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite"):
        MinMax().see(torch.tensor([[1.0, bad, 2.0]]))


def test_other_channels_than_before_are_refused():
    with pytest.raises(ValueError, match="3 channels where there were 1"):
        MinMax().see(torch.zeros(3, 2))
