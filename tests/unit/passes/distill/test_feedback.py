"""Sampling weights from validation errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data.contract import Dataset
from compressor.errors import RequirementError
from passes.distill.feedback import check_strata, sampling_weights


def test_slices_with_more_errors_weigh_more() -> None:
    axis = np.array(["text"] * 50 + ["speech"] * 50)
    correct = np.array([True] * 45 + [False] * 5 + [True] * 25 + [False] * 25)
    weights = sampling_weights({"input": axis}, {"input": axis}, correct, strength=1.0, limit=3.0)
    assert weights.mean() == np.float64(1.0) or abs(weights.mean() - 1) < 1e-9
    assert weights[-1] > 1 > weights[0]


def test_all_samples_weigh_the_same_without_errors() -> None:
    axis = np.array(["a", "b"] * 10)
    weights = sampling_weights(
        {"x": axis}, {"x": axis}, np.ones(20, dtype=bool), strength=1.0, limit=3.0
    )
    assert (weights == 1).all()


def test_strata_and_axes_without_validation_samples_have_no_effect() -> None:
    train, validation = np.array(["a", "b", "c"]), np.array(["a", "b"] * 5)
    correct = np.array([True, False] * 5)
    weights = sampling_weights(
        {"x": train, "only-here": train}, {"x": validation}, correct, strength=1.0, limit=3.0
    )
    assert weights[1] > weights[2] > weights[0]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=60),
    st.floats(0.1, 4),
    st.floats(1.1, 9),
)
def test_weights_are_positive_bounded_and_of_mean_one(
    rows: list[tuple[str, bool]], strength: float, limit: float
) -> None:
    axis = np.array([name for name, _ in rows])
    correct = np.array([is_correct for _, is_correct in rows])
    weights = sampling_weights({"x": axis}, {"x": axis}, correct, strength=strength, limit=limit)
    assert (weights > 0).all()
    assert abs(weights.mean() - 1) < 1e-9
    assert weights.max() / weights.min() <= limit**2 * (1 + 1e-9)


class Stratified(Dataset):
    def __init__(self, *axes: str) -> None:
        self.axes = axes

    def __len__(self) -> int:
        return 2

    def batch(self, indices, epoch=0):
        return {"x": indices}

    def strata(self):
        return {axis: np.array(["a", "b"]) for axis in self.axes}


def test_data_sets_without_a_common_axis_are_an_error() -> None:
    check_strata(Stratified("x", "y"), Stratified("y"))
    with pytest.raises(RequirementError, match=r"`feedback`: .* share no strata"):
        check_strata(Stratified("x"), Stratified("y"))
