"""Online feedback: where the student fails on the validation split, training looks more often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Labels = np.ndarray[Any, Any]


def sampling_weights(
    train_slices: Mapping[str, Labels],
    validation_slices: Mapping[str, Labels],
    correct: Labels,
    *,
    strength: float,
    limit: float,
) -> Labels:
    """A weight for each training sample, from the error of the slices that it lies in.

    For each axis that both sets have, a slice with error e_s weighs ((e_s·n_s + e·m) / (n_s + m) / e)^strength, where e is
    the error of the whole set and m shrinks small slices towards it; the axes multiply, and the result lies within
    1/limit and limit, with mean 1.

    Args:
        train_slices: axis to the slice of each training sample, [N] each.
        validation_slices: the same for the validation set, [M] each.
        correct: [M] bool, whether the student is right there.
        strength: 0 leaves all weights at 1.
        limit: the largest weight, and the inverse of the smallest.

    Returns:
        [N] float64.
    """
    error = 1.0 - float(np.mean(correct))
    count = len(next(iter(train_slices.values())))
    weights = np.ones(count)
    if error == 0.0:
        return weights
    for axis in sorted(train_slices.keys() & validation_slices.keys()):
        names, members = np.unique(validation_slices[axis], return_inverse=True)
        sizes = np.bincount(members)
        wrong = np.bincount(members, weights=1.0 - correct)
        prior = len(correct) / len(names)
        relative = (wrong + error * prior) / (sizes + prior) / error
        factor = dict(zip(names.tolist(), (relative**strength).tolist(), strict=True))
        weights *= np.array([factor.get(name, 1.0) for name in train_slices[axis].tolist()])
    weights = np.clip(weights, 1 / limit, limit)
    normalised: Labels = weights / weights.mean()
    return normalised
