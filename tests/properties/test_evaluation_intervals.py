"""Properties of slices and of confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compressor.data.contract import Batch, Dataset
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.intervals import (
    bootstrap_mean_interval,
    paired_mean_interval,
    proportion_interval,
    quantile_interval,
)
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session

FINITE = st.floats(-1e6, 1e6, width=32)


class Echo(Session):
    runtime, output_names = "echo", ("logits",)
    inputs = (InputSpec("x", "float32", ("batch", 3)),)

    def compute(self, feeds):
        return {"logits": feeds["x"]}


class Sliced(Dataset):
    input_names, label_name = ("x",), "label"

    def __init__(self, x, label, slices):
        self.arrays: Batch = {"x": x, "label": label}
        self.slice_labels = slices

    def __len__(self):
        return len(self.arrays["label"])

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}

    def slices(self):
        return self.slice_labels


@st.composite
def sliced_datasets(draw):
    count = draw(st.integers(1, 40))
    axes = {
        axis: np.array(draw(st.lists(st.sampled_from(names), min_size=count, max_size=count)))
        for axis, names in (("input", ["text", "speech"]), ("language", ["zh", "en", "de"]))
    }
    x = draw(arrays(np.float32, (count, 3), elements=st.floats(-50, 50, width=32)))
    return Sliced(x, draw(arrays(np.int64, count, elements=st.integers(0, 2))), axes)


@settings(deadline=None, max_examples=60)
@given(sliced_datasets(), st.integers(1, 9), st.integers(0, 30))
def test_slices_add_up_to_the_whole(dataset, batch_size, bootstrap):
    config = AccuracyConfig(
        data="test", metrics=("top1", "cross_entropy"), batch_size=batch_size, bootstrap=bootstrap
    )
    report = measure_accuracy(Echo(), dataset, config, lambda *_: None)
    by_name = {metric.name: metric for metric in report.metrics}
    assert report.slices.keys() == {"input", "language"}
    for axis, counts in report.slices.items():
        assert sum(counts.values()) == report.samples
        for name in config.metrics:
            total = 0.0
            for label, count in counts.items():
                metric = by_name[f"{name}[{axis}={label}]"]
                assert metric.samples == count
                total += metric.value * count
            np.testing.assert_allclose(
                total / report.samples, by_name[name].value, rtol=1e-9, atol=1e-9
            )
    for metric in report.metrics:
        if bootstrap:
            assert metric.low <= metric.value <= metric.high


@settings(deadline=None)
@given(
    arrays(np.float64, st.integers(1, 60), elements=FINITE), st.integers(1, 200), st.integers(0, 5)
)
def test_a_bootstrap_interval_contains_the_mean_and_lies_within_the_range_of_the_values(
    values, resamples, seed
):
    low, high = bootstrap_mean_interval(values, resamples, seed)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert values.min() - slack <= low <= values.mean() <= high <= values.max() + slack
    assert (low, high) == bootstrap_mean_interval(values, resamples, seed)


@given(st.integers(1, 2000))
def test_the_interval_of_all_correct_answers_does_not_collapse_to_a_point(count):
    low, high = proportion_interval(np.ones(count), 100)
    assert high == 1.0
    assert low**count == pytest.approx(0.025)
    assert proportion_interval(np.zeros(count), 100) == pytest.approx((0.0, 1 - low))


@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 300), elements=FINITE), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_ends_of_a_quantile_interval_are_measured_values(values, quantile):
    values = np.sort(values)
    interval = quantile_interval(values, quantile)
    if interval is None:
        assert len(values) < 370
        return
    assert values[0] <= interval[0] <= interval[1] <= values[-1]
    assert set(interval) <= set(values.tolist())


def test_the_bootstrap_interval_covers_the_true_mean_in_about_95_percent():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        low, high = bootstrap_mean_interval((generator.random(200) < 0.7).astype(float), 400)
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_quantile_interval_covers_the_true_quantile_in_about_95_percent():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        low, high = quantile_interval(np.sort(generator.random(100)), 0.9)
        hits += low <= 0.9 <= high
    assert 0.94 <= hits / 2000 <= 0.99


def test_an_interval_of_ratios_may_be_infinite() -> None:
    zeros, ones = np.zeros(16), np.ones(16)

    def ratio(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(old > 0, new / np.maximum(old, 1e-300), np.inf)

    assert paired_mean_interval(ones, zeros, ratio) == (np.inf, np.inf)
