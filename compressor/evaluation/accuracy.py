"""How often a model is right, over the whole set and by slice, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.intervals import score_interval
from compressor.evaluation.metrics import METRICS
from compressor.evaluation.records import AccuracyConfig, AccuracyReport
from compressor.runtimes.session import Session

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]


def measure_accuracy(session: Session, dataset: Dataset, config: AccuracyConfig, progress: Progress) -> AccuracyReport:
    """Run every sample once and judge the answers.

    Raises:
        DataError: the set is empty, has no labels, or labels that the model has no class for.
        NumericalError: the model answers with NaN, or a metric is infinite.
        UsageError: a metric is unknown.
    """
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        raise UsageError(f"unknown metrics: {', '.join(unknown)}", remedy=f"known: {', '.join(METRICS)}")
    logits, labels = _answers(session, dataset, config, progress)
    slices = {axis: np.asarray(values)[: len(labels)] for axis, values in dataset.slices().items()}
    metrics = [
        metric
        for name in config.metrics
        for metric in _metrics_of(name, METRICS[name].values(logits, labels), slices, config.bootstrap)
    ]
    whole = [metric for metric in metrics if "[" not in metric.name]
    return AccuracyReport(
        data=config.data,
        samples=len(labels),
        metrics=(*whole, *(metric for metric in metrics if "[" in metric.name)),
        slices={axis: _counts(values) for axis, values in slices.items()},
        predictions=tuple(logits.argmax(axis=1).tolist()),
        labels=tuple(labels.tolist()),
    )


def _answers(session: Session, dataset: Dataset, config: AccuracyConfig, progress: Progress) -> tuple[Array, Array]:
    """Logits [N, C] and labels [N] of the whole set, or of its first ``num_samples``."""
    count = len(dataset) if config.num_samples is None else min(config.num_samples, len(dataset))
    label = dataset.label_name
    if count == 0 or label is None:
        raise DataError(
            f"the set {config.data!r} {'is empty' if count == 0 else 'has no labels'}: accuracy cannot be measured on it"
        )
    if "logits" not in session.output_names:
        raise DataError(
            f"the model has no output `logits` to judge; it has {', '.join(session.output_names)}",
            remedy="measure latency only, or export the model with an output of that name",
        )
    logits, labels = [], []
    for batch in dataset.batches(config.batch_size, count):
        logits.append(session.run(batch)["logits"])
        labels.append(batch[label])
        progress("accuracy", sum(map(len, labels)), count)
    return _checked(np.concatenate(logits), np.concatenate(labels), config.data)


def _checked(logits: Array, labels: Array, data: str) -> tuple[Array, Array]:
    if bad := int(np.isnan(logits).any(axis=1).sum()):
        raise NumericalError(f"the model answers {bad} of {len(logits)} samples of {data!r} with NaN")
    if logits.ndim != 2 or labels.ndim != 1:
        raise DataError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} of {data!r} are not [N, C] and [N]"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"labels of {data!r} go from {labels.min()} to {labels.max()}; the model has {logits.shape[1]} classes",
            remedy="name a data set that was made for this model",
        )
    return logits, labels


def _counts(values: Array) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _metrics_of(name: str, values: Array, slices: Mapping[str, Array], resamples: int) -> Iterator[Metric]:
    yield _metric(name, name, values, resamples)
    for axis, labels in slices.items():
        for one in np.unique(labels):
            yield _metric(name, f"{name}[{axis}={one}]", values[labels == one], resamples)


def _metric(metric: str, name: str, values: Array, resamples: int) -> Metric:
    if not np.isfinite(values).all():
        raise NumericalError(f"{name} is not finite: the model rules out the right answer of some samples")
    low, high = score_interval(values, resamples) or (None, None)
    kind = METRICS[metric]
    return Metric(
        name=name,
        value=float(values.mean()),
        unit=kind.unit,
        better=kind.better,
        samples=len(values),
        low=low,
        high=high,
    )
