"""Accuracy metrics, computed position by position; samples, slices and data sets take the mean.

Shapes: P positions (one per sample, or one per token), C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Scorer = Callable[[Array, Array], Array]
"""Maps logits [P, C] and the target to float64 [P].

The target is labels, int [P], or the logits of a reference, [P, C].
"""

IGNORED_LABEL = -100
"""Label of a position that is not scored, as in transformers."""
MAX_CHUNK_VALUES = 1 << 22
"""Logits that are scored at once."""


@dataclass(frozen=True, slots=True)
class AccuracyMetric:
    """A mean of values, one for each position."""

    unit: str
    better: Literal["higher", "lower"]
    score: Scorer
    target: Literal["labels", "reference"] = "labels"
    """Target of the comparison: labels, or the outputs of a reference model."""
    output: Literal["logits", "embedding"] = "logits"
    """The output that is scored. A model without logits is scored on products of its embeddings."""
    from_mean: Callable[[float], float] = float
    """Maps the mean to the metric; monotonically increasing, so it applies to intervals too."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a model on the N samples of a data set.

    A sample is counted if it has a label that is scored, or if there are no labels.
    """

    values: Mapping[str, Array]
    """Metric to one float64 for each sample that it scores."""
    scored: Mapping[str, Array]
    """Metric to bool [N], True for the samples that it scores."""
    counted: Array
    """bool [N]."""
    predictions: Array
    """Class of the largest logit of each counted sample; empty unless a sample has one label."""
    labels: Array
    """Label of each counted sample; empty unless a sample has one label."""


def reference_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return those of the named metrics that compare with a reference model."""
    return tuple(
        name for name in metrics if name in METRICS and METRICS[name].target == "reference"
    )


def _top1(logits_PC: Array, labels_P: Array) -> Array:
    """Return 1 where the label has the largest logit, else 0; of equal logits the first counts."""
    correct_P: Array = (logits_PC.argmax(axis=1) == labels_P).astype(np.float64)
    return correct_P


def _cross_entropy(logits_PC: Array, labels_P: Array) -> Array:
    """Return the negative log-probability of the label, in nats."""
    shifted_PC, normalizer_P = _log_softmax_terms(logits_PC)
    entropy_P: Array = normalizer_P - shifted_PC[np.arange(len(labels_P)), labels_P]
    return entropy_P


def _reciprocal_rank(logits_PC: Array, labels_P: Array) -> Array:
    """Return 1 / rank of the label among the logits, largest first; of equal logits the first."""
    own_P1 = logits_PC[np.arange(len(labels_P)), labels_P][:, None]
    before_PC = np.arange(logits_PC.shape[1]) < labels_P[:, None]
    rank_P = 1 + ((logits_PC > own_P1) | ((logits_PC == own_P1) & before_PC)).sum(axis=1)
    inverse_P: Array = 1.0 / rank_P
    return inverse_P


def _cosine(vectors_PC: Array, reference_PC: Array) -> Array:
    """Return the cosine similarity of each vector and the reference's; 0 where one is zero."""
    a_PC, b_PC = vectors_PC.astype(np.float64), reference_PC.astype(np.float64)
    lengths_P = np.linalg.norm(a_PC, axis=1) * np.linalg.norm(b_PC, axis=1)
    cosine_P: Array = (a_PC * b_PC).sum(axis=1) / np.where(lengths_P > 0, lengths_P, 1.0)
    return cosine_P


def _agreement(logits_PC: Array, reference_PC: Array) -> Array:
    """Return 1 where model and reference have their largest logit at the same class, else 0."""
    return _top1(logits_PC, reference_PC.argmax(axis=1))


def _kl_divergence(logits_PC: Array, reference_PC: Array) -> Array:
    """Return KL(reference || model) in nats (Kullback & Leibler 1951).

    Classes to which the reference gives probability 0 contribute 0.
    """
    target_PC, model_PC = _log_softmax(reference_PC), _log_softmax(logits_PC)
    with np.errstate(invalid="ignore"):  # -inf - -inf, and 0 * inf, where the reference is 0
        terms_PC = np.exp(target_PC) * (target_PC - model_PC)
    total_P = np.where(np.isneginf(target_PC), 0.0, terms_PC).sum(axis=1)
    divergence_P: Array = np.maximum(total_P, 0.0)  # rounding may give values slightly below 0
    return divergence_P


def _log_softmax(logits_PC: Array) -> Array:
    shifted_PC, normalizer_P = _log_softmax_terms(logits_PC)
    return shifted_PC - normalizer_P[:, None]


def _log_softmax_terms(logits_PC: Array) -> tuple[Array, Array]:
    """Return logits minus their row's maximum, against overflow, and the log-sum-exp of these."""
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller reports
        shifted_PC = logits_PC.astype(np.float64) - logits_PC.max(axis=1, keepdims=True)
    return shifted_PC, np.log(np.exp(shifted_PC).sum(axis=1))


def _exponential(mean: float) -> float:
    """Return e**mean; infinite where it overflows, as perplexity does for a mean above 709 nats."""
    with np.errstate(over="ignore"):
        return float(np.exp(mean))


METRICS: dict[str, AccuracyMetric] = {
    "top1": AccuracyMetric("fraction", "higher", _top1),
    "cross_entropy": AccuracyMetric("nats", "lower", _cross_entropy),
    "perplexity": AccuracyMetric("", "lower", _cross_entropy, from_mean=_exponential),
    "mrr": AccuracyMetric("", "higher", _reciprocal_rank),
    "agreement": AccuracyMetric("fraction", "higher", _agreement, "reference"),
    "kl": AccuracyMetric("nats", "lower", _kl_divergence, "reference"),
    "cosine": AccuracyMetric("", "higher", _cosine, "reference", output="embedding"),
}
"""The metrics that ``evaluate.accuracy.metrics`` may name."""
