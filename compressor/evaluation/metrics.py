"""What an answer is worth, sample by sample; whole-set figures, slices and intervals are means over these.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SampleMetric:
    """One value per sample."""

    unit: str
    better: Literal["higher", "lower"]
    values: Callable[[Array, Array], Array]
    """(logits [N, C], labels int [N]) to float64 [N]."""


def _top1(logits_NC: Array, labels_N: Array) -> Array:
    """1 where the largest logit is the label's; of equal ones, the first counts."""
    right_N: Array = (logits_NC.argmax(axis=1) == labels_N).astype(np.float64)
    return right_N


def _cross_entropy(logits_NC: Array, labels_N: Array) -> Array:
    """Minus the logarithm of the probability of the label, in nats."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    normalizer_N = np.log(np.exp(shifted_NC).sum(axis=1))
    surprise_N: Array = normalizer_N - shifted_NC[np.arange(len(labels_N)), labels_N]
    return surprise_N


METRICS: dict[str, SampleMetric] = {
    "top1": SampleMetric("fraction", "higher", _top1),
    "cross_entropy": SampleMetric("nats", "lower", _cross_entropy),
}
"""The metrics that ``evaluate.accuracy.metrics`` may name."""
