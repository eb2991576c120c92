"""Tests of latency: which calls are timed, and what is computed from them."""

import gc
import time

import numpy as np
import pytest

from compressor.errors import DataError
from compressor.evaluation.latency import latency_metrics, measure_latency, select_latency_batches
from compressor.evaluation.records import LatencyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session


class Sleepy(Session):
    runtime, output_names = "sleepy 1", ("logits",)
    inputs = (InputSpec("words", "int64", ("batch", "length")),)

    def __init__(self):
        self.fed = []

    def compute(self, feeds):
        assert not self.fed or gc.isenabled() == (len(self.fed) < 3)
        self.fed.append(feeds["words"].tobytes())
        time.sleep(0.001)
        return {}


def dataset(count=40):
    import tiny

    return tiny.TinySet(tiny.TinySourceConfig(source="tiny", num_samples=count))


def test_every_call_after_the_warm_up_is_timed_on_different_samples():
    session, config = Sleepy(), LatencyConfig(warmup=3, repeats=10, batch_size=2)
    batches = select_latency_batches(dataset(), config)
    assert len(batches) == 10
    assert {len(batch["label"]) for batch in batches} == {2}
    milliseconds = measure_latency(session, batches, config)
    assert len(milliseconds) == 10
    assert len(session.fed) == 13
    assert len(set(session.fed[3:])) == 10
    assert min(milliseconds) >= 1.0
    assert gc.isenabled()


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(40, 1, 32), (3, 1, 3), (3, 8, 1)])
def test_batches_spread_over_the_data_set_and_wrap_in_a_small_one(count, batch_size, batches):
    selected = select_latency_batches(dataset(count), LatencyConfig(batch_size=batch_size))
    assert len(selected) == batches
    assert {len(batch["words"]) for batch in selected} == {batch_size}


def test_an_empty_data_set_is_an_error():
    with pytest.raises(DataError, match="empty"):
        select_latency_batches(dataset(0), LatencyConfig())


def test_percentiles_and_throughput_have_intervals_where_the_repeats_suffice():
    metrics = {
        metric.name: metric for metric in latency_metrics(np.linspace(1, 3, 101), batch_size=4)
    }
    assert metrics["latency_p50_ms"].value == pytest.approx(2.0)
    assert metrics["latency_p90_ms"].value == pytest.approx(2.8)
    assert metrics["latency_p50_ms"].low < 2.0 < metrics["latency_p50_ms"].high
    assert metrics["latency_p99_ms"].low is None
    assert metrics["throughput"].value == pytest.approx(2000)
    assert metrics["throughput"].low < 2000 < metrics["throughput"].high
