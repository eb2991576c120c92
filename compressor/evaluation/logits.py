"""Score logits against labels or the logits of a reference, with one batch in memory at a time.

Shapes: N samples of a batch, each with one position or several (one or more axes "..."); P
positions; C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.metrics import (
    IGNORED_LABEL,
    MAX_CHUNK_VALUES,
    METRICS,
    Array,
    Scorer,
    Scores,
)
from compressor.evaluation.records import AccuracyConfig, Progress
from compressor.runtimes.session import Session


@dataclass(frozen=True, slots=True)
class _BatchScores:
    values: Mapping[str, Array]
    """Metric to one float64 for each counted sample."""
    counted: Array
    """bool [N], True if a position of the sample is scored."""
    predictions: Array
    labels: Array


def score_logits(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
) -> Scores:
    """Run every sample once and score the logits, [N, ..., C].

    A sample's value is the mean over its positions whose label, [N, ...], is not -100; a sample
    without such a position is not counted. Arguments as for ``measure_accuracy``.

    Raises:
        DataError: no label is scored, or labels or reference do not fit the logits.
        NumericalError: a model outputs NaN.
        UsageError: a metric scores embeddings.
    """
    if embedding_metrics := [name for name in config.metrics if METRICS[name].output != "logits"]:
        raise UsageError(
            f"{', '.join(embedding_metrics)} scores embeddings, but the model outputs logits",
            remedy="remove it from `evaluate.accuracy.metrics`",
        )
    scorer = _BatchScorer(session, reference, dataset.label_name, config)
    count = config.sample_count(len(dataset))
    batches: list[_BatchScores] = []
    done = 0
    for batch in dataset.batches(config.batch_size, count):
        batches.append(scorer.score(batch, done))
        done += len(batches[-1].counted)
        progress("accuracy", done, count)
    counted = np.concatenate([batch.counted for batch in batches])
    if not counted.any():
        raise DataError(
            f"all labels of the data set {config.data!r} are {IGNORED_LABEL}: nothing is scored",
            remedy="if its samples are cut before their answers, raise `sequence_length`",
        )
    return Scores(
        values={
            name: np.concatenate([batch.values[name] for batch in batches])
            for name in config.metrics
        },
        scored=dict.fromkeys(config.metrics, counted),
        counted=counted,
        predictions=np.concatenate([batch.predictions for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
    )


@dataclass(frozen=True, slots=True)
class _BatchScorer:
    session: Session
    reference: Session | None
    label_name: str | None
    config: AccuracyConfig

    def score(self, batch: Batch, done: int) -> _BatchScores:
        """Score a batch that ``done`` samples precede; no reference to its logits is kept."""
        logits = _run(self.session, batch, "the model")
        targets: dict[str, Array] = {}
        counted: Array = np.ones(logits.shape[:-1], dtype=np.bool_)
        if self.label_name is not None:
            targets["labels"] = batch[self.label_name]
            counted = self._scored_positions(targets["labels"], logits)
        if self.reference is not None:
            targets["reference"] = self._reference_logits(batch, logits)
        for model, outputs in (("the model", logits), ("the reference", targets.get("reference"))):
            if outputs is not None and (count := _count_samples_with_nan(outputs, counted)):
                total = f"the first {done + len(logits)} samples of {self.config.data!r}"
                raise NumericalError(f"{model} outputs NaN for {count} of {total}")
        selected: Array = counted.reshape(len(logits), -1).sum(axis=1) > 0
        one_label = counted.ndim == 1 and self.label_name is not None
        none = np.empty(0, dtype=np.int64)
        return _BatchScores(
            values=_sample_means(logits, targets, counted, self.config),
            counted=selected,
            predictions=logits[selected].argmax(axis=1) if one_label else none,
            labels=targets["labels"][selected] if one_label else none,
        )

    def _scored_positions(self, labels: Array, logits: Array) -> Array:
        """Return bool [N, ...], True for positions whose label is scored."""
        data = self.config.data
        if labels.shape != logits.shape[:-1]:
            raise DataError(
                f"logits {list(logits.shape)} and labels {list(labels.shape)} of {data!r} "
                "do not fit",
                remedy="use a data set with one label per position: "
                "[N] for logits [N, C], [N, L] for logits [N, L, C]",
            )
        scored: Array = labels != IGNORED_LABEL
        values = labels[scored]
        if values.size and (values.min() < 0 or values.max() >= logits.shape[-1]):
            raise DataError(
                f"labels of {data!r} range from {values.min()} to {values.max()}; "
                f"the model has {logits.shape[-1]} classes",
                remedy="name a data set that was made for this model",
            )
        return scored

    def _reference_logits(self, batch: Batch, logits: Array) -> Array:
        if self.reference is self.session or self.reference is None:
            return logits
        reference_logits = _run(self.reference, batch, "the reference")
        if logits.shape != reference_logits.shape:
            raise DataError(
                f"the reference outputs logits {list(reference_logits.shape)}, "
                f"the model {list(logits.shape)}",
                remedy="name a reference of the same task as `evaluate.accuracy.reference`",
            )
        return reference_logits


def _run(session: Session, batch: Batch, model: str) -> Array:
    if "logits" not in session.output_names:
        raise DataError(
            f"{model} has no output `logits` to score; it has {', '.join(session.output_names)}",
            remedy="measure latency only, or export the model with an output of that name",
        )
    logits = session.run(batch)["logits"]
    if logits.ndim < 2:
        raise DataError(
            f"{model} outputs logits {list(logits.shape)}, expected [N, C] or [N, ..., C]"
        )
    return logits


def _count_samples_with_nan(logits: Array, counted: Array) -> int:
    """Return the number of samples with NaN at a scored position; padding may hold anything."""
    # A row with NaN has the sum NaN, and the sums take far less memory than isnan of the logits.
    # inf - inf sums to NaN as well, so those rows are checked value by value.
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = np.isnan(logits.sum(axis=-1)) & counted
    suspect[suspect] = np.isnan(logits[suspect]).any(axis=-1)
    return int(suspect.reshape(len(logits), -1).any(axis=1).sum())


def _sample_means(
    logits: Array, targets: Mapping[str, Array], counted: Array, config: AccuracyConfig
) -> dict[str, Array]:
    """Return each metric's mean over the scored positions of each counted sample.

    Positions are scored in chunks, and once for metrics that share a scorer.
    """
    scorers: dict[Scorer, str] = {
        METRICS[name].score: METRICS[name].target for name in config.metrics
    }
    logits_PC = logits.reshape(counted.size, -1)
    targets_P = {
        kind: array.reshape(counted.size, *array.shape[counted.ndim :])
        for kind, array in targets.items()
    }
    positions = np.flatnonzero(counted)
    by_position = {scorer: np.zeros(counted.size) for scorer in scorers}
    step = max(1, MAX_CHUNK_VALUES // logits_PC.shape[1])
    for start in range(0, len(positions), step):
        at = positions[start : start + step]
        chunk_PC = logits_PC[at]
        for scorer, target in scorers.items():
            by_position[scorer][at] = scorer(chunk_PC, targets_P[target][at])
    count_N = counted.reshape(len(counted), -1).sum(axis=1)
    selected = count_N > 0
    means = {
        scorer: values.reshape(len(counted), -1).sum(axis=1)[selected] / count_N[selected]
        for scorer, values in by_position.items()
    }
    return {name: means[METRICS[name].score] for name in config.metrics}
