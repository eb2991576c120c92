"""How well a model answers, over the whole set and by slice, with intervals; one batch of logits is in memory at a time.

Shapes: N samples of a batch, each answered once or at several positions (an axis or more of "..."), P positions that count,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.intervals import bootstrap_mean, score_interval
from compressor.evaluation.metrics import METRICS, Judge, referring
from compressor.evaluation.records import AccuracyConfig, AccuracyReport
from compressor.runtimes.session import Session

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]

IGNORED = -100
"""The label of a position that does not count, as transformers has it."""
CHUNK_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is kept of a batch."""

    values: Mapping[Judge, Array]
    """One float64 for each sample that counts."""
    counted: Array
    """bool [N]: whether a position of the sample counts."""
    predictions: Array
    labels: Array
    """Both of the samples that count, and empty unless a sample has one label."""


def measure_accuracy(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
) -> AccuracyReport:
    """Run every sample once and judge the answers, logits [N, ..., C], by labels [N, ...] or by those of a reference.

    A sample's value is the mean over its positions whose label is not -100; a sample without one does not count.

    Raises:
        DataError: the set is empty, has no labels for the metrics that need them, or labels that do not fit the answers.
        NumericalError: a model answers with NaN, or a metric is infinite.
        UsageError: a metric is unknown, or compares with a reference and there is none.
    """
    check(dataset, config, reference)
    if wrong := [name for name in config.metrics if METRICS[name].of != "logits"]:
        raise UsageError(
            f"{', '.join(wrong)} judges embeddings, and this model answers with logits",
            remedy="leave it out",
        )
    count = len(dataset) if config.num_samples is None else min(config.num_samples, len(dataset))
    judged: list[_Judged] = []
    done = 0
    for batch in dataset.batches(config.batch_size, count):
        judged.append(_judged(session, reference, batch, dataset.label_name, config, done))
        done += len(judged[-1].counted)
        progress("accuracy", done, count)
    counted = np.concatenate([one.counted for one in judged])
    if not counted.any():
        raise DataError(f"no label of the set {config.data!r} counts: all are {IGNORED}")
    values = {
        one: np.concatenate([batch.values[one] for batch in judged]) for one in judged[0].values
    }
    slices = {axis: np.asarray(labels)[:done][counted] for axis, labels in dataset.slices().items()}
    metrics = [
        metric
        for name in config.metrics
        for metric in metrics_of(name, values[METRICS[name].values], slices, config.bootstrap)
    ]
    whole = [metric for metric in metrics if "[" not in metric.name]
    return AccuracyReport(
        data=config.data,
        samples=int(counted.sum()),
        metrics=(*whole, *(metric for metric in metrics if "[" in metric.name)),
        slices={axis: counts(labels) for axis, labels in slices.items()},
        predictions=tuple(value for one in judged for value in one.predictions.tolist()),
        labels=tuple(value for one in judged for value in one.labels.tolist()),
        values={name: tuple(values[METRICS[name].values].tolist()) for name in config.metrics},
    )


def check(dataset: Dataset, config: AccuracyConfig, reference: Session | None) -> None:
    """Metrics that are known, a set that has what they need, and a reference where they compare.

    Raises:
        DataError: the set is empty, or has no labels.
        UsageError: a metric is unknown, or there is no reference.
    """
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        raise UsageError(
            f"unknown metrics: {', '.join(unknown)}", remedy=f"known: {', '.join(METRICS)}"
        )
    if len(dataset) == 0:
        raise DataError(f"the set {config.data!r} is empty: accuracy cannot be measured on it")
    compared = referring(config.metrics)
    labelled = [name for name in config.metrics if name not in compared]
    if labelled and dataset.label_name is None:
        raise DataError(
            f"the set {config.data!r} has no labels: {', '.join(labelled)} cannot be measured on it",
            remedy="name a set with labels, or agreement and kl alone, which compare with a reference",
        )
    if compared and reference is None:
        raise UsageError(
            f"{' and '.join(compared)} compare with a reference, and there is none",
            remedy="name one as `evaluate.accuracy.reference`",
        )


def _judged(
    session: Session,
    reference: Session | None,
    batch: Batch,
    label: str | None,
    config: AccuracyConfig,
    done: int,
) -> _Judged:
    """The values of a batch; its logits are let go of here. ``done`` samples came before it."""
    logits = _logits(session, batch, "the model")
    right: dict[str, Array] = {}
    counted: Array = np.ones(logits.shape[:-1], dtype=np.bool_)
    if label is not None:
        right["labels"] = labels = batch[label]
        counted = _counted(labels, logits, config.data)
    if reference is not None:
        right["reference"] = (
            logits if reference is session else _logits(reference, batch, "the reference")
        )
        _check_alike(logits, right["reference"])
    for who, answers in (("the model", logits), ("the reference", right.get("reference"))):
        if answers is not None and (bad := _samples_with_nan(answers, counted)):
            some = f"{bad} of the first {done + len(logits)} samples of {config.data!r}"
            raise NumericalError(f"{who} answers {some} with NaN")
    chosen: Array = counted.reshape(len(logits), -1).sum(axis=1) > 0
    single = counted.ndim == 1 and label is not None
    return _Judged(
        values=_values(logits, right, counted, config),
        counted=chosen,
        predictions=logits[chosen].argmax(axis=1) if single else np.empty(0, dtype=np.int64),
        labels=right["labels"][chosen] if single else np.empty(0, dtype=np.int64),
    )


def _logits(session: Session, batch: Batch, who: str) -> Array:
    if "logits" not in session.output_names:
        raise DataError(
            f"{who} has no output `logits` to judge; it has {', '.join(session.output_names)}",
            remedy="measure latency only, or export the model with an output of that name",
        )
    logits = session.run(batch)["logits"]
    if logits.ndim < 2:
        raise DataError(
            f"{who} answers with logits {list(logits.shape)}, expected [N, C] or [N, ..., C]"
        )
    return logits


def _counted(labels: Array, logits: Array, data: str) -> Array:
    """Which positions have a label that counts, bool [N, ...]."""
    if labels.shape != logits.shape[:-1]:
        raise DataError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} of {data!r} do not fit",
            remedy="a set has one label for each answer: [N] for logits [N, C], [N, L] for logits [N, L, C]",
        )
    counted: Array = labels != IGNORED
    known = labels[counted]
    if known.size and (known.min() < 0 or known.max() >= logits.shape[-1]):
        raise DataError(
            f"labels of {data!r} go from {known.min()} to {known.max()}; the model has {logits.shape[-1]} classes",
            remedy="name a data set that was made for this model",
        )
    return counted


def _check_alike(logits: Array, reference: Array) -> None:
    if logits.shape != reference.shape:
        raise DataError(
            f"the reference answers with logits {list(reference.shape)}, the model with {list(logits.shape)}",
            remedy="name a reference of the same task as `evaluate.accuracy.reference`",
        )


def _samples_with_nan(logits: Array, counted: Array) -> int:
    """How many samples have NaN where it counts: a model may answer padding with anything."""
    # The sum of a row is NaN where a value of it is, and needs no array of the logits' size; inf - inf is looked into.
    with np.errstate(invalid="ignore", over="ignore"):
        doubtful = np.isnan(logits.sum(axis=-1)) & counted
    doubtful[doubtful] = np.isnan(logits[doubtful]).any(axis=-1)
    return int(doubtful.reshape(len(logits), -1).any(axis=1).sum())


def _values(
    logits: Array, right: Mapping[str, Array], counted: Array, config: AccuracyConfig
) -> dict[Judge, Array]:
    """Each metric's mean over the positions that count, one float64 a sample; judged a few positions at a time."""
    judges = {METRICS[name].values: METRICS[name].right for name in config.metrics}
    logits_PC = logits.reshape(counted.size, -1)
    right_P = {
        kind: array.reshape(counted.size, *array.shape[counted.ndim :])
        for kind, array in right.items()
    }
    positions = np.flatnonzero(counted)
    by_position = {judge: np.zeros(counted.size) for judge in judges}
    step = max(1, CHUNK_CELLS // logits_PC.shape[1])
    for start in range(0, len(positions), step):
        at = positions[start : start + step]
        answers = logits_PC[at]
        for judge, kind in judges.items():
            by_position[judge][at] = judge(answers, right_P[kind][at])
    number_N = counted.reshape(len(counted), -1).sum(axis=1)
    chosen = number_N > 0
    return {
        judge: found.reshape(len(counted), -1).sum(axis=1)[chosen] / number_N[chosen]
        for judge, found in by_position.items()
    }


def counts(values: Array) -> dict[str, int]:
    """How often each value occurs."""
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def metrics_of(
    name: str, values: Array, slices: Mapping[str, Array], resamples: int
) -> Iterator[Metric]:
    """Of a named metric: the figure of the whole set, then of each slice."""
    yield _metric(name, name, values, resamples)
    for axis, labels in slices.items():
        for one in np.unique(labels):
            yield _metric(name, f"{name}[{axis}={one}]", values[labels == one], resamples)


def _metric(metric: str, name: str, values: Array, resamples: int) -> Metric:
    kind = METRICS[metric]
    value = kind.from_mean(float(values.mean()))
    low = high = None
    if np.isfinite(values).all():
        interval = (score_interval if kind.unit == "fraction" else bootstrap_mean)(
            values, resamples
        )
        low, high = map(kind.from_mean, interval) if interval else (None, None)
    if not np.isfinite([value, *(end for end in (low, high) if end is not None)]).all():
        raise NumericalError(
            f"{name} is not finite: the model rules out the right answer of some samples"
        )
    return Metric(
        name=name,
        value=value,
        unit=kind.unit,
        better=kind.better,
        samples=len(values),
        low=low,
        high=high,
    )
