"""Latency of single calls: each timed by itself, on different samples, after a warm-up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError
from compressor.evaluation.intervals import bootstrap_mean_interval, quantile_interval
from compressor.evaluation.records import LatencyConfig
from compressor.runtimes.session import Session, match_inputs

_MAX_BATCHES = 32
"""Most batches that are kept in memory; calls repeat them in turn."""
_PERCENTILES = (50, 90, 99)
_RESAMPLES = 1000


def select_latency_batches(dataset: Dataset, config: LatencyConfig) -> list[Batch]:
    """Return different batches, spread evenly over the data set, as copies.

    The copies let the data set be freed before memory is measured.

    Raises:
        DataError: the data set is empty.
    """
    if len(dataset) == 0:
        raise DataError("the data set of `evaluate.latency` is empty")
    count = min(_MAX_BATCHES, config.repeats, max(1, len(dataset) // config.batch_size))
    positions = np.linspace(0, len(dataset), count * config.batch_size, endpoint=False)
    # Transposed, so that each batch spreads over the data set as all batches together do.
    rows = positions.astype(np.int64).reshape(config.batch_size, count).T
    return [
        {name: np.array(array) for name, array in dataset.batch(indices).items()}
        for indices in rows
    ]


def measure_latency(
    session: Session,
    batches: Sequence[Batch],
    config: LatencyConfig,
    before_call: Callable[[], None] = lambda: None,
) -> tuple[float, ...]:
    """Return the milliseconds of each of ``config.repeats`` calls, in order.

    Batches are repeated in turn. Only the computation is timed: arrays are checked and cast before.
    The garbage collector is disabled meanwhile. ``before_call`` is called before each call, outside
    of the time that is measured.

    Raises:
        DataError: the data does not fit the model.
    """
    feeds = [match_inputs(batch, session.inputs) for batch in batches]
    for index in range(config.warmup):
        before_call()
        session.compute(feeds[index % len(feeds)])
    nanoseconds = []
    gc_was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(config.repeats):
            feed = feeds[index % len(feeds)]
            before_call()
            start = time.perf_counter_ns()
            session.compute(feed)
            nanoseconds.append(time.perf_counter_ns() - start)
    finally:
        if gc_was_enabled:
            gc.enable()
    return tuple(value / 1e6 for value in nanoseconds)


def latency_metrics(milliseconds: Sequence[float], batch_size: int) -> tuple[Metric, ...]:
    """Return percentiles, mean and throughput, with 95 % intervals where the repeats suffice.

    The intervals treat calls as independent; load from other processes makes the true spread
    larger.

    Args:
        milliseconds: duration of each call.
        batch_size: samples per call.
    """
    values = np.sort(np.asarray(milliseconds, dtype=np.float64))
    metrics = []
    for percent in _PERCENTILES:
        value = float(np.percentile(values, percent))
        low, high = quantile_interval(values, percent / 100) or (None, None)
        if low is not None and high is not None:
            low, high = min(low, value), max(high, value)
        metrics.append(_metric(f"latency_p{percent}_ms", value, len(values), low, high))
    mean = float(values.mean())
    low_mean, high_mean = bootstrap_mean_interval(values, _RESAMPLES) or (mean, mean)
    metrics.append(_metric("latency_mean_ms", mean, len(values), low_mean, high_mean))
    metrics.append(
        Metric(
            name="throughput",
            value=1e3 * batch_size / mean,
            unit="samples/s",
            better="higher",
            samples=len(values),
            low=1e3 * batch_size / high_mean,
            high=1e3 * batch_size / low_mean,
        )
    )
    return tuple(metrics)


def _metric(name: str, value: float, repeats: int, low: float | None, high: float | None) -> Metric:
    return Metric(
        name=name, value=value, unit="ms", better="lower", samples=repeats, low=low, high=high
    )
