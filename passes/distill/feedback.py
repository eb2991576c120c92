"""Sampling weights from the errors of the student on the validation set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.contract import Dataset
from compressor.errors import RequirementError
from passes.common.accuracy import Evaluation
from passes.common.sampling import Weights
from passes.distill.config import Feedback

Labels = np.ndarray[Any, Any]


def sampling_weights(
    train_strata: Mapping[str, Labels],
    validation_strata: Mapping[str, Labels],
    correct: Labels,
    *,
    strength: float,
    limit: float,
) -> Weights:
    """Return a weight for each training sample, from the validation error of its strata.

    A stratum s of n_s validation samples with error e_s weighs
    ((e_s·n_s + e·m) / (n_s + m) / e)^strength. The error of the whole set is e, and m is the mean
    size of the strata: it shrinks the estimates of small strata towards e. The weights of a
    sample's strata are multiplied over the axes that both sets have, clipped to
    [1/limit, limit], and scaled to mean 1.

    Args:
        train_strata: Axis to the stratum of each of N training samples, [N].
        validation_strata: The same for M validation samples, [M].
        correct: [M], 1 or True where the student is correct.
        strength: Exponent; 0 gives all samples the weight 1.
        limit: Largest weight, and inverse of the smallest, before scaling.

    Returns:
        float64 [N].
    """
    error = 1.0 - float(np.mean(correct))
    count = len(next(iter(train_strata.values())))
    weights = np.ones(count)
    if error == 0.0:
        return weights
    for axis in sorted(train_strata.keys() & validation_strata.keys()):
        names, members = np.unique(validation_strata[axis], return_inverse=True)
        sizes = np.bincount(members)
        wrong = np.bincount(members, weights=1.0 - correct)
        prior = len(correct) / len(names)
        relative = (wrong + error * prior) / (sizes + prior) / error
        factor = dict(zip(names.tolist(), (relative**strength).tolist(), strict=True))
        weights *= np.array([factor.get(name, 1.0) for name in train_strata[axis].tolist()])
    weights = np.clip(weights, 1 / limit, limit)
    scaled: Weights = weights / weights.mean()
    return scaled


def check_strata(train: Dataset, validation: Dataset) -> None:
    """Check that two data sets share an axis of strata.

    Raises:
        RequirementError: They do not.
    """
    if not train.strata().keys() & validation.strata().keys():
        raise RequirementError(
            "`feedback`: the training and validation sets share no strata to weigh samples by",
            remedy="leave `feedback` out, or use two sets with labels",
        )


@dataclass(frozen=True, slots=True)
class FeedbackCallback:
    """Callback of the training loop that returns new sampling weights after an evaluation."""

    config: Feedback
    steps: int
    """Number of steps of the training."""
    train_strata: Mapping[str, Labels]
    validation_strata: Mapping[str, Labels]

    def __call__(self, step: int, evaluation: Evaluation) -> Weights | None:
        """Return the weights [N]; None before ``start``, and after the last step."""
        if step < self.config.start * self.steps or step >= self.steps:
            return None
        count = len(evaluation.correct)
        return sampling_weights(
            self.train_strata,
            {axis: strata[:count] for axis, strata in self.validation_strata.items()},
            evaluation.correct,
            strength=self.config.strength,
            limit=self.config.limit,
        )
