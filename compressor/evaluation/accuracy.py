"""Accuracy of a model on a data set and on its slices, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.embeddings import outputs_only_embeddings, score_embeddings
from compressor.evaluation.intervals import bootstrap_mean_interval, proportion_interval
from compressor.evaluation.logits import score_logits
from compressor.evaluation.metrics import METRICS, Array, Scores, reference_metrics
from compressor.evaluation.records import AccuracyConfig, AccuracyReport, Progress
from compressor.runtimes.session import Session


def measure_accuracy(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
) -> AccuracyReport:
    """Run a model on a data set and score its logits, or its embeddings if it has no logits.

    Args:
        session: the model.
        dataset: samples, with labels for metrics that need them.
        config: metrics, batch size and number of samples.
        progress: called with the number of samples done.
        reference: the model that ``agreement``, ``kl`` and ``cosine`` compare with; ``session``
            itself is run once.

    Raises:
        DataError: the data set is empty, has no labels for metrics that need them, or its labels do
            not fit the model's outputs.
        NumericalError: a model outputs NaN, or a metric is infinite.
        UsageError: a metric is unknown, does not apply to the model's outputs, or needs a reference
            and there is none.
    """
    _check_request(dataset, config, reference)
    score = score_embeddings if outputs_only_embeddings(session) else score_logits
    return _report(config, dataset, score(session, dataset, config, progress, reference))


def _check_request(dataset: Dataset, config: AccuracyConfig, reference: Session | None) -> None:
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        raise UsageError(
            f"unknown metrics: {', '.join(unknown)}", remedy=f"known: {', '.join(METRICS)}"
        )
    if len(dataset) == 0:
        raise DataError(f"the data set {config.data!r} is empty: accuracy cannot be measured")
    compared = reference_metrics(config.metrics)
    labelled = [name for name in config.metrics if name not in compared]
    if labelled and dataset.label_name is None:
        raise DataError(
            f"the data set {config.data!r} has no labels, required for {', '.join(labelled)}",
            remedy="use a data set with labels, or only metrics that compare with a reference, "
            "such as agreement and kl",
        )
    if compared and reference is None:
        raise UsageError(
            f"{' and '.join(compared)} compare with a reference, and there is none",
            remedy="name one as `evaluate.accuracy.reference`",
        )


def _report(config: AccuracyConfig, dataset: Dataset, scores: Scores) -> AccuracyReport:
    slices = {
        axis: np.asarray(labels)[: len(scores.counted)] for axis, labels in dataset.slices().items()
    }
    whole: list[Metric] = []
    by_slice: list[Metric] = []
    for name in config.metrics:
        values = scores.values[name]
        whole.append(_metric(name, name, values, config.bootstrap))
        scored_slices = {axis: labels[scores.scored[name]] for axis, labels in slices.items()}
        by_slice += _slice_metrics(name, values, scored_slices, config.bootstrap)
    return AccuracyReport(
        data=config.data,
        samples=int(scores.counted.sum()),
        metrics=(*whole, *by_slice),
        slices={axis: _count_values(labels[scores.counted]) for axis, labels in slices.items()},
        predictions=tuple(scores.predictions.tolist()),
        labels=tuple(scores.labels.tolist()),
        values={name: tuple(scores.values[name].tolist()) for name in config.metrics},
    )


def _slice_metrics(
    name: str, values: Array, slices: Mapping[str, Array], resamples: int
) -> Iterator[Metric]:
    for axis, labels in slices.items():
        for label in np.unique(labels):
            yield _metric(name, f"{name}[{axis}={label}]", values[labels == label], resamples)


def _metric(kind: str, name: str, values: Array, resamples: int) -> Metric:
    metric = METRICS[kind]
    value = metric.from_mean(float(values.mean()))
    low = high = None
    if np.isfinite(values).all():
        bound = proportion_interval if metric.unit == "fraction" else bootstrap_mean_interval
        interval = bound(values, resamples)
        low, high = map(metric.from_mean, interval) if interval else (None, None)
    if not np.isfinite([value, *(end for end in (low, high) if end is not None)]).all():
        raise NumericalError(
            f"{name} is not finite: the model gives probability 0 to the target of some samples"
        )
    return Metric(
        name=name,
        value=value,
        unit=metric.unit,
        better=metric.better,
        samples=len(values),
        low=low,
        high=high,
    )


def _count_values(values: Array) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
