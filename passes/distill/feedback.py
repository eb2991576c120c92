"""Online feedback: where the student fails on the validation split, training looks more often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Labels = np.ndarray[Any, Any]


def sampling_weights(
    train_strata: Mapping[str, Labels],
    validation_strata: Mapping[str, Labels],
    correct: Labels,
    *,
    strength: float,
    limit: float,
) -> Labels:
    """A weight for each training sample, from the error of the strata that it lies in.

    For each axis that both sets have, a stratum s of n_s samples with error e_s weighs
    ((e_s·n_s + e·m) / (n_s + m) / e)^strength, where e is the error of the whole set and m shrinks small strata towards it;
    the axes multiply, and the result lies within 1/limit and limit before it is scaled to mean 1.

    Args:
        train_strata: axis to the stratum of each training sample, [N] each.
        validation_strata: the same for the validation set, [M] each.
        correct: [M] bool, whether the student is right there.
        strength: 0 leaves all weights at 1.
        limit: the largest weight, and the inverse of the smallest.

    Returns:
        [N] float64.
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
    normalised: Labels = weights / weights.mean()
    return normalised
