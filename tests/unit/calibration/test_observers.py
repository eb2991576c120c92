"""Observers merge exactly, choose the documented bounds, and refuse values that are not finite."""

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
    create_observer,
)

EXACT = [kind for kind in OBSERVERS if kind != "moving-average"]
STREAMS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), min_size=2, max_size=5
)
"""Batches of one channel."""


def observe(kind, batches, channels=1):
    observer = create_observer(kind, channels)
    for batch in batches:
        observer.observe(torch.tensor(batch, dtype=torch.float32).reshape(channels, -1))
    return observer


@settings(deadline=None, max_examples=40)
@given(STREAMS, st.sampled_from(EXACT), st.data())
def test_observers_of_two_parts_merge_into_an_observer_of_the_whole(batches, kind, data):
    cut = data.draw(st.integers(0, len(batches)))
    whole = observe(kind, batches)
    merged, second = observe(kind, batches[:cut]), observe(kind, batches[cut:])
    merged.merge(second)
    for name, value in vars(whole).items():
        actual = vars(merged)[name]
        equal = torch.equal(actual, value) if isinstance(value, torch.Tensor) else actual == value
        assert equal, name
    assert torch.equal(merged.bound(127), whole.bound(127))


@settings(deadline=None, max_examples=40)
@given(STREAMS, st.sampled_from(list(OBSERVERS)))
def test_a_bound_lies_between_zero_and_the_largest_magnitude(batches, kind):
    observer = observe(kind, batches)
    largest = max(abs(value) for batch in batches for value in batch)
    assert observer.largest_magnitude.item() == pytest.approx(largest)
    assert observer.count == sum(map(len, batches))
    assert 0 <= observer.bound(127).item() <= largest * (1 + 1e-9)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_channels_are_observed_independently(kind):
    torch.manual_seed(0)
    values = torch.randn(2, 5000) * torch.tensor([[1.0], [300.0]])
    observer = create_observer(kind, 2)
    observer.observe(values)
    separate = [observe(kind, [row.tolist()]).bound(127).item() for row in values]
    assert observer.bound(127).tolist() == pytest.approx(separate, rel=1e-6)


def test_min_max_and_the_moving_average():
    assert observe("min-max", [[1.0, -3.0], [2.0]]).bound(127).item() == 3.0
    average = MovingAverage(decay=0.9)
    for value in (1.0, 11.0):
        average.observe(torch.tensor([[value]]))
    assert average.bound(127).item() == pytest.approx(2.0)
    second = MovingAverage()
    second.observe(torch.tensor([[5.0]]))
    average.merge(second)
    assert average.bound(127).item() == pytest.approx((2 * 2.0 + 5.0) / 3)


def test_a_percentile_covers_its_share_of_the_values():
    torch.manual_seed(0)
    values = torch.rand(1, 100_000)
    observer = Percentile(percentile=90.0)
    observer.observe(values)
    assert observer.bound(127).item() == pytest.approx(0.9, abs=0.01)
    assert (values.abs() <= observer.bound(127)).double().mean() >= 0.9


def normal_values_with_an_outlier():
    torch.manual_seed(0)
    values = torch.randn(1, 200_000)
    values[0, 0] = 60.0
    return values


def test_the_squared_error_is_close_to_the_minimum():
    values = normal_values_with_an_outlier()
    observer = MeanSquaredError()
    observer.observe(values)

    def error(bound):
        step = bound / 127
        return ((values / step).round().clamp(-127, 127) * step - values).square().mean().item()

    least = min(error(bound) for bound in torch.linspace(2, 60, 400).tolist())
    assert error(observer.bound(127).item()) <= 1.03 * least
    assert error(60.0) > 1.5 * least


def test_entropy_clips_outliers_but_no_uniform_values():
    observer = Entropy()
    observer.observe(normal_values_with_an_outlier())
    assert 2.5 < observer.bound(127).item() < 12
    uniform = Entropy()
    torch.manual_seed(0)
    uniform.observe(torch.rand(1, 200_000))
    assert uniform.bound(127).item() > 0.9


@pytest.mark.parametrize("kind", OBSERVERS)
def test_zeros_have_a_bound_of_zero(kind):
    assert observe(kind, [[0.0, 0.0]]).bound(127).item() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_counted(value):
    with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite"):
        MinMax().observe(torch.tensor([[1.0, value, 2.0]]))


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="expected 1 channels, but the values have 3"):
        MinMax().observe(torch.zeros(3, 2))
