"""How long one call takes: every call timed by itself, on samples that differ, after a warm-up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError
from compressor.evaluation.intervals import bootstrap_mean, quantile_interval
from compressor.evaluation.records import LatencyConfig
from compressor.runtimes.session import Session, match_inputs

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]

_DISTINCT_BATCHES = 32
_PERCENTILES = (50, 90, 99)
_RESAMPLES = 1000


def batches_for_latency(dataset: Dataset, config: LatencyConfig) -> list[Batch]:
    """Different batches, spread evenly over the set, as copies that keep nothing else of it alive.

    Raises:
        DataError: the set is empty.
    """
    if len(dataset) == 0:
        raise DataError("the set that latency is measured on is empty")
    count = min(_DISTINCT_BATCHES, config.repeats, max(1, len(dataset) // config.batch_size))
    indices = np.linspace(0, len(dataset), count * config.batch_size, endpoint=False).astype(
        np.int64
    )
    # Transposed, so that one batch spreads over the set as the batches do together.
    return [
        {name: np.array(array) for name, array in dataset.batch(one).items()}
        for one in indices.reshape(config.batch_size, count).T
    ]


def measure_latency(
    session: Session, batches: Sequence[Batch], config: LatencyConfig, progress: Progress
) -> tuple[float, ...]:
    """Milliseconds of each of ``config.repeats`` calls, in order; the batches go round.

    Only the computation is timed: arrays are checked and cast before. The garbage collector rests meanwhile.

    Raises:
        DataError: the data does not fit the model.
    """
    feeds = [match_inputs(batch, session.inputs) for batch in batches]
    for index in range(config.warmup):
        session.compute(feeds[index % len(feeds)])
    nanoseconds = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(config.repeats):
            feed = feeds[index % len(feeds)]
            start = time.perf_counter_ns()
            session.compute(feed)
            nanoseconds.append(time.perf_counter_ns() - start)
    finally:
        if collecting:
            gc.enable()
    progress("latency", config.repeats, config.repeats)
    return tuple(value / 1e6 for value in nanoseconds)


def latency_metrics(milliseconds: Sequence[float], batch_size: int) -> tuple[Metric, ...]:
    """Percentiles, mean and throughput, with intervals where so many repeats can bound them.

    The intervals take calls as independent; other load on the machine makes the true spread larger.
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
    low_mean, high_mean = bootstrap_mean(values, _RESAMPLES) or (mean, mean)
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
