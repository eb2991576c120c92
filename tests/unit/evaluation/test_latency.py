import gc
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.errors import DataError
from compressor.evaluation.latency import batches_for_latency, latency_metrics, measure_latency
from compressor.evaluation.machine import OtherLoad, peak_rss_bytes, restart_peak
from compressor.evaluation.records import LatencyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session


class Sleepy(Session):
    runtime, output_names = "sleepy 1", ("logits",)
    inputs = (InputSpec("words", "int64", ("batch", "length")),)

    def __init__(self):
        self.seen = []

    def compute(self, feeds):
        assert not self.seen or gc.isenabled() == (len(self.seen) < 3)
        self.seen.append(feeds["words"].tobytes())
        time.sleep(0.001)
        return {}


def dataset(count=40):
    import tiny

    return tiny.TinySet(tiny.TinySourceConfig(source="tiny", num_samples=count))


def test_every_call_is_timed_after_the_warm_up_on_samples_that_differ():
    session, config = Sleepy(), LatencyConfig(warmup=3, repeats=10, batch_size=2)
    batches = batches_for_latency(dataset(), config)
    assert len(batches) == 10
    assert {len(batch["label"]) for batch in batches} == {2}
    milliseconds = measure_latency(session, batches, config, lambda *_: None)
    assert len(milliseconds) == 10
    assert len(session.seen) == 13
    assert len(set(session.seen[3:])) == 10
    assert min(milliseconds) >= 1.0
    assert gc.isenabled()


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(40, 1, 32), (3, 1, 3), (3, 8, 1)])
def test_batches_come_from_all_over_the_set_and_wrap_where_it_is_small(count, batch_size, batches):
    found = batches_for_latency(dataset(count), LatencyConfig(batch_size=batch_size))
    assert len(found) == batches
    assert {len(batch["words"]) for batch in found} == {batch_size}


def test_an_empty_set_is_told():
    with pytest.raises(DataError, match="empty"):
        batches_for_latency(dataset(0), LatencyConfig())


def test_percentiles_and_throughput():
    metrics = {
        metric.name: metric for metric in latency_metrics(np.linspace(1, 3, 101), batch_size=4)
    }
    assert metrics["latency_p50_ms"].value == pytest.approx(2.0)
    assert metrics["latency_p90_ms"].value == pytest.approx(2.8)
    assert metrics["latency_p50_ms"].low < 2.0 < metrics["latency_p50_ms"].high
    assert metrics["latency_p99_ms"].low is None
    assert metrics["throughput"].value == pytest.approx(2000)
    assert metrics["throughput"].low < 2000 < metrics["throughput"].high


def test_the_peak_is_counted_from_the_restart():
    ballast = np.ones(8_000_000)
    before = peak_rss_bytes()
    del ballast
    if not restart_peak():
        pytest.skip("this kernel does not let a process restart its peak")
    assert peak_rss_bytes() < before - 50_000_000


def test_what_others_keep_busy_is_not_our_own_work(monkeypatch, tmp_path):
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr("compressor.evaluation.machine._STAT", stat)
    clocks = {"wall": 10.0, "own": 1.0}
    monkeypatch.setattr(
        "compressor.evaluation.machine.time",
        SimpleNamespace(perf_counter=lambda: clocks["wall"], process_time=lambda: clocks["own"]),
    )
    stat.write_text(f"cpu  {5 * ticks} 0 {2 * ticks} 900 0 0 0 0 0 0\n")
    watch = OtherLoad()
    assert watch.cores() is None
    clocks |= {"wall": 12.0, "own": 2.5}
    stat.write_text(f"cpu  {6 * ticks} {ticks} {3 * ticks} 999 0 0 0 0 0 0\n")
    assert watch.cores() == pytest.approx((3 - 1.5) / 2)
