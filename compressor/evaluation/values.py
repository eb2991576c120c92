"""Score outputs of any shape against a reference, and scores of one number per sample.

Shapes: N samples, V values of a sample.
"""

from __future__ import annotations

import numpy as np

from compressor.errors import DataError
from compressor.evaluation.metrics import Array, Scores, metric_named
from compressor.evaluation.scoring import (
    NOTHING,
    OutputScorer,
    ScoredBatch,
    output_array,
    raise_nan,
    reference_array,
    samples_with_nan,
    valid_positions,
)


class ValuesScorer(OutputScorer):
    """Compares all values of a sample with those of the reference, without padding."""

    def __init__(self, metrics: tuple[str, ...], output: str) -> None:
        self.metrics, self.output = metrics, output
        self.values: dict[str, list[Array]] = {name: [] for name in metrics}

    def update(self, scored: ScoredBatch) -> None:
        """Score a batch.

        Raises:
            DataError: the reference lacks the output, or has another shape.
            NumericalError: a model outputs NaN.
        """
        values = output_array(scored.outputs, self.output, "the model")
        expected = reference_array(scored, self.output, values)
        assert expected is not None  # noqa: S101 - checked before the first batch
        valid = valid_positions(scored.batch, values.shape)
        if valid is not None:  # padding may hold anything, and counts as zeros on both sides
            valid = valid.reshape(*valid.shape, *(1,) * (values.ndim - 2))
            values, expected = np.where(valid, values, 0), np.where(valid, expected, 0)
        raise_nan("the model", samples_with_nan(values), values, scored)
        raise_nan("the reference", samples_with_nan(expected), values, scored)
        rows_NV = values.reshape(len(values), -1)
        expected_NV = expected.reshape(len(values), -1)
        for name in self.metrics:
            self.values[name].append(metric_named(name).score(rows_NV, expected_NV))

    def finish(self) -> Scores:
        """Return the scores of all samples."""
        values = {name: np.concatenate(chunks) for name, chunks in self.values.items()}
        everything = np.ones(len(next(iter(values.values()))), dtype=np.bool_)
        return Scores(values, dict.fromkeys(self.metrics, everything), everything, NOTHING, NOTHING)


class ScalarScorer(OutputScorer):
    """Compares one number per sample, such as the score of a reranker, with labels or reference."""

    def __init__(self, metrics: tuple[str, ...], output: str, label_name: str | None) -> None:
        self.metrics, self.output, self.label_name = metrics, output, label_name
        self.model: list[Array] = []
        self.targets: dict[str, list[Array]] = {"labels": [], "reference": []}

    def update(self, scored: ScoredBatch) -> None:
        """Keep the numbers of a batch.

        Raises:
            DataError: there are several numbers per sample, or other labels.
            NumericalError: a model outputs NaN.
        """
        values = output_array(scored.outputs, self.output, "the model")
        expected = reference_array(scored, self.output, values)
        self.model.append(self._numbers(values, scored, "the model"))
        if expected is not None:
            self.targets["reference"].append(self._numbers(expected, scored, "the reference"))
        if self.label_name is not None:
            labels = scored.batch[self.label_name]
            if labels.size != len(values):
                raise DataError(
                    f"labels {list(labels.shape)} of {scored.data!r} are not one number per sample",
                    remedy="name a data set with one number per sample",
                )
            self.targets["labels"].append(labels.reshape(-1))

    def _numbers(self, values: Array, scored: ScoredBatch, model: str) -> Array:
        if values.size != len(values):
            raise DataError(
                f"{', '.join(self.metrics)} compares one number per sample, and {model} outputs "
                f"{self.output} {list(values.shape)}",
                remedy="use metrics of classes, such as `top1` or `agreement`",
            )
        numbers_N = values.reshape(-1)
        raise_nan(model, samples_with_nan(numbers_N), numbers_N, scored)
        return numbers_N

    def finish(self) -> Scores:
        """Return the scores of all samples."""
        model_N = np.concatenate(self.model)
        targets = {kind: np.concatenate(parts) for kind, parts in self.targets.items() if parts}
        terms = {name: (model_N, targets[metric_named(name).target]) for name in self.metrics}
        values = {name: metric_named(name).score(*pair) for name, pair in terms.items()}
        everything = np.ones(len(model_N), dtype=np.bool_)
        scored = dict.fromkeys(self.metrics, everything)
        return Scores(values, scored, everything, NOTHING, NOTHING, terms)
