"""What an answer is worth, position by position; samples, slices and whole sets are means over these.

Shapes: P positions that are answered, one of a sample or one for each of its tokens; C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Judge = Callable[[Array, Array], Array]
"""(logits [P, C], what is right) to float64 [P]; right are labels, int [P], or the logits of a reference [P, C]."""


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """A figure of how a model answers: a mean of values, one for each position."""

    unit: str
    better: Literal["higher", "lower"]
    values: Judge
    right: Literal["labels", "reference"] = "labels"
    """What the answers are held against."""
    of: Literal["logits", "embedding"] = "logits"
    """The output that is judged; where a model has embeddings alone, logits are their products (see ``embeddings``)."""
    from_mean: Callable[[float], float] = float
    """The figure for a mean of values; must rise with it, as the ends of an interval go the same way."""


def referring(metrics: Iterable[str]) -> tuple[str, ...]:
    """Those of the named metrics that compare with a reference."""
    return tuple(name for name in metrics if name in METRICS and METRICS[name].right == "reference")


def _top1(logits_PC: Array, labels_P: Array) -> Array:
    """1 where the largest logit is the label's; of equal ones, the first counts."""
    right_P: Array = (logits_PC.argmax(axis=1) == labels_P).astype(np.float64)
    return right_P


def _cross_entropy(logits_PC: Array, labels_P: Array) -> Array:
    """Minus the logarithm of the probability of the label, in nats."""
    shifted_PC, normalizer_P = _shifted(logits_PC)
    surprise_P: Array = normalizer_P - shifted_PC[np.arange(len(labels_P)), labels_P]
    return surprise_P


def _reciprocal_rank(logits_PC: Array, labels_P: Array) -> Array:
    """1 / the place of the label when logits are sorted from the largest; of equal ones, the first comes first."""
    own_P1 = logits_PC[np.arange(len(labels_P)), labels_P][:, None]
    before_PC = np.arange(logits_PC.shape[1]) < labels_P[:, None]
    rank_P = 1 + ((logits_PC > own_P1) | ((logits_PC == own_P1) & before_PC)).sum(axis=1)
    inverse_P: Array = 1.0 / rank_P
    return inverse_P


def _cosine(vectors_PC: Array, reference_PC: Array) -> Array:
    """Of the angle between a vector and the reference's; 0 where one is zero."""
    a_PC, b_PC = vectors_PC.astype(np.float64), reference_PC.astype(np.float64)
    lengths_P = np.linalg.norm(a_PC, axis=1) * np.linalg.norm(b_PC, axis=1)
    cosine_P: Array = (a_PC * b_PC).sum(axis=1) / np.where(lengths_P > 0, lengths_P, 1.0)
    return cosine_P


def _agreement(logits_PC: Array, reference_PC: Array) -> Array:
    """1 where the reference has its largest logit at the same class."""
    return _top1(logits_PC, reference_PC.argmax(axis=1))


def _divergence(logits_PC: Array, reference_PC: Array) -> Array:
    """KL(reference || model) in nats (Kullback & Leibler 1951); what the reference rules out adds nothing."""
    wanted_PC, model_PC = _log_probabilities(reference_PC), _log_probabilities(logits_PC)
    with np.errstate(invalid="ignore"):  # -inf less -inf, and 0 times inf, where the reference is 0
        parts_PC = np.exp(wanted_PC) * (wanted_PC - model_PC)
    total_P = np.where(np.isneginf(wanted_PC), 0.0, parts_PC).sum(axis=1)
    divergence_P: Array = np.maximum(total_P, 0.0)  # rounding may take near equal answers below
    return divergence_P


def _log_probabilities(logits_PC: Array) -> Array:
    shifted_PC, normalizer_P = _shifted(logits_PC)
    return shifted_PC - normalizer_P[:, None]


def _shifted(logits_PC: Array) -> tuple[Array, Array]:
    """Logits less the largest of their row, so that no exponential overflows, and the logarithm of what those sum to."""
    with np.errstate(
        invalid="ignore"
    ):  # infinite logits give NaN, which the figure then is, and is told
        shifted_PC = logits_PC.astype(np.float64) - logits_PC.max(axis=1, keepdims=True)
    return shifted_PC, np.log(np.exp(shifted_PC).sum(axis=1))


def _exponential(mean: float) -> float:
    """Infinite where it is too large, as perplexity is of a mean over 709 nats."""
    with np.errstate(over="ignore"):
        return float(np.exp(mean))


METRICS: dict[str, AnswerMetric] = {
    "top1": AnswerMetric("fraction", "higher", _top1),
    "cross_entropy": AnswerMetric("nats", "lower", _cross_entropy),
    "perplexity": AnswerMetric("", "lower", _cross_entropy, from_mean=_exponential),
    "mrr": AnswerMetric("", "higher", _reciprocal_rank),
    "agreement": AnswerMetric("fraction", "higher", _agreement, "reference"),
    "kl": AnswerMetric("nats", "lower", _divergence, "reference"),
    "cosine": AnswerMetric("", "higher", _cosine, "reference", of="embedding"),
}
"""The metrics that ``evaluate.accuracy.metrics`` may name."""
