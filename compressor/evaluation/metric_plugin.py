"""Contract of a metric of another package, found through ``autoglm_compress.metrics``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np

Array = np.ndarray[Any, Any]


class MetricPlugin(ABC):
    """A metric that is a mean of values, one for each position or sample.

    A new metric is one class and one entry point. Its module must import without torch.
    """

    name: ClassVar[str]
    """Name in ``evaluate.accuracy.metrics``, without colons, brackets or spaces."""
    unit: ClassVar[str] = ""
    """Unit; ``fraction`` if every value lies between 0 and 1."""
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    target: ClassVar[Literal["labels", "reference"]] = "labels"
    """Target of the comparison: labels, or the outputs of a reference model."""
    scale: ClassVar[Literal["classes", "values", "scalar"]] = "classes"
    """What is scored: logits of each position, all values of a sample, or one number per sample."""
    of_distribution: ClassVar[bool] = False
    """True if the logits are a distribution over classes, and not only a ranking."""
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """Smallest and largest value that the metric can have; gates are checked against them."""

    @abstractmethod
    def score(self, outputs: Array, targets: Array) -> Array:
        """Return one number for each position or sample; the metric is their mean.

        Args:
            outputs: outputs of the model: logits [P, C] of P positions, values [N, V] of N samples,
                or numbers [N]. Probabilities arrive as their logarithms.
            targets: labels [P] or [N], or the outputs of the reference, of the shape of
                ``outputs``.
        """
