"""Score logits against labels or the logits of a reference, with one batch in memory at a time.

Shapes: N samples of a batch, each with one position or several (one or more axes "..."); P
positions; C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compressor.errors import DataError
from compressor.evaluation.class_outputs import (
    ClassReading,
    check_classes,
    check_distribution,
    check_same_scale,
    class_axis,
    first_rows,
    read_scale,
)
from compressor.evaluation.metrics import (
    IGNORED_LABEL,
    MAX_CHUNK_VALUES,
    Array,
    Scorer,
    Scores,
    metric_named,
)
from compressor.evaluation.scoring import (
    NOTHING,
    OutputScorer,
    ScoredBatch,
    output_array,
    raise_nan,
    reference_array,
    valid_positions,
)


@dataclass(frozen=True, slots=True)
class _BatchScores:
    values: Mapping[str, Array]
    """Metric to one float64 for each counted sample."""
    counted: Array
    """bool [N], True if a position of the sample is scored."""
    predictions: Array
    labels: Array


class LogitsScorer(OutputScorer):
    """Scores logits [N, ..., C], or [N, C, H, W] of images, position by position.

    An output of another name may hold probabilities as well; the first batch decides, that of the
    reference if there is one. A sample's value is the mean over its positions whose label,
    [N, ...], is not -100; a sample without such a position is not counted. Without labels, all
    positions count that are not padding.
    """

    def __init__(self, metrics: tuple[str, ...], output: str, label_name: str | None) -> None:
        self.metrics, self.output, self.label_name = metrics, output, label_name
        self.batches: list[_BatchScores] = []
        self.reading: ClassReading | None = None
        self.note: str | None = None

    def update(self, scored: ScoredBatch) -> None:
        """Score a batch.

        Raises:
            DataError: labels or reference do not fit the logits, or the output has no classes, or
                no distribution over them where a metric compares those.
            NumericalError: a model outputs NaN at a position that is scored.
        """
        logits = output_array(scored.outputs, self.output, "the model")
        expected = reference_array(scored, self.output, logits)
        judged = logits if expected is None else expected
        if self.reading is None:
            check_classes(judged, self.metrics, self.output)
        labels = self._labels(scored, logits)
        axis = class_axis(judged, labels, self.output)
        if self.reading is not None:
            axis = self.reading.axis
        if axis == 1:
            logits, judged = np.moveaxis(logits, 1, -1), np.moveaxis(judged, 1, -1)
            expected = None if expected is None else judged
        counted = _counted_positions(scored, logits, labels)
        for model, outputs in (("the model", logits), ("the reference", expected)):
            if outputs is not None:
                raise_nan(model, _count_samples_with_nan(outputs, counted), logits, scored)
        reading = self.reading or self._read(judged, counted, axis)
        if expected is not None and self._compares_distributions:
            check_same_scale(first_rows(logits, counted), reading, "the reference", "the model")
        targets = {
            kind: array
            for kind, array in (("labels", labels), ("reference", expected))
            if array is not None
        }
        selected: Array = counted.reshape(len(logits), -1).sum(axis=1) > 0
        one_label = counted.ndim == 1 and labels is not None
        self.batches.append(
            _BatchScores(
                values=_sample_means(logits, targets, counted, self.metrics, reading),
                counted=selected,
                predictions=logits[selected].argmax(axis=1) if one_label else NOTHING,
                labels=labels[selected] if one_label and labels is not None else NOTHING,
            )
        )

    @property
    def _compares_distributions(self) -> bool:
        return any(metric_named(name).of_distribution for name in self.metrics)

    def _read(self, judged: Array, counted: Array, axis: int) -> ClassReading:
        """Return the reading of the output, decided by the first batch with scored positions."""
        rows_PC = first_rows(judged, counted)
        reading = ClassReading(self.output, axis, read_scale(rows_PC, self.output))
        if len(rows_PC):
            check_distribution(reading.scale, self.metrics, self.output)
            self.reading = reading
            self.note = reading.note(self.metrics, np.moveaxis(judged, -1, axis).shape)
        return reading

    def _labels(self, scored: ScoredBatch, logits: Array) -> Array | None:
        """Return the labels; None if no metric reads them and they are not those of positions.

        So are the transcripts of speech recognition by CTC, of which agreement is independent.
        """
        if self.label_name is None:
            return None
        labels: Array = scored.batch[self.label_name]
        is_read = any(metric_named(name).target == "labels" for name in self.metrics)
        positions = {logits.shape[:-1], (len(logits), *logits.shape[2:])}
        return labels if is_read or labels.shape in positions else None

    def finish(self) -> Scores:
        """Return the scores of all batches; see ``OutputScorer``."""
        counted = np.concatenate([batch.counted for batch in self.batches])
        return Scores(
            values={
                name: np.concatenate([batch.values[name] for batch in self.batches])
                for name in self.metrics
            },
            scored=dict.fromkeys(self.metrics, counted),
            counted=counted,
            predictions=np.concatenate([batch.predictions for batch in self.batches]),
            labels=np.concatenate([batch.labels for batch in self.batches]),
        )


def _counted_positions(scored: ScoredBatch, logits: Array, labels: Array | None) -> Array:
    """Return bool [N, ...], True for positions that are scored.

    Raises:
        DataError: labels do not fit the logits.
    """
    if labels is None:
        counted: Array = np.ones(logits.shape[:-1], dtype=np.bool_)
        valid = valid_positions(scored.batch, logits.shape)
        if valid is not None:
            counted &= valid.reshape(*valid.shape, *(1,) * (counted.ndim - 2))
        return counted
    data = scored.data
    if labels.shape != logits.shape[:-1]:
        raise DataError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} of {data!r} do not fit",
            remedy="use a data set with one label per position: "
            "[N] for logits [N, C], [N, L] for logits [N, L, C]",
        )
    is_scored: Array = labels != IGNORED_LABEL
    values = labels[is_scored]
    if values.size and (values.min() < 0 or values.max() >= logits.shape[-1]):
        raise DataError(
            f"labels of {data!r} range from {values.min()} to {values.max()}; "
            f"the model has {logits.shape[-1]} classes",
            remedy="name a data set that was made for this model",
        )
    return is_scored


def _count_samples_with_nan(logits: Array, counted: Array) -> int:
    """Return the number of samples with NaN at a scored position; padding may hold anything."""
    # A row with NaN has the sum NaN, and the sums take far less memory than isnan of the logits.
    # inf - inf sums to NaN as well, so those rows are checked value by value.
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = np.isnan(logits.sum(axis=-1)) & counted
    suspect[suspect] = np.isnan(logits[suspect]).any(axis=-1)
    return int(suspect.reshape(len(logits), -1).any(axis=1).sum())


def _sample_means(
    logits: Array,
    targets: Mapping[str, Array],
    counted: Array,
    metrics: tuple[str, ...],
    reading: ClassReading,
) -> dict[str, Array]:
    """Return each metric's mean over the scored positions of each counted sample.

    Positions are scored in chunks, and once for metrics that share a scorer.
    """
    scorers: dict[Scorer, str] = {
        metric_named(name).score: metric_named(name).target for name in metrics
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
        chunk_PC = reading.as_logits(logits_PC[at])
        for scorer, target in scorers.items():
            wanted = targets_P[target][at]
            wanted = reading.as_logits(wanted) if target == "reference" else wanted
            by_position[scorer][at] = scorer(chunk_PC, wanted)
    count_N = counted.reshape(len(counted), -1).sum(axis=1)
    selected = count_N > 0
    means = {
        scorer: values.reshape(len(counted), -1).sum(axis=1)[selected] / count_N[selected]
        for scorer, values in by_position.items()
    }
    return {name: means[metric_named(name).score] for name in metrics}
