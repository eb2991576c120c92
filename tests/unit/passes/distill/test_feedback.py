from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from passes.distill.feedback import sampling_weights


def test_slices_that_fail_weigh_more() -> None:
    axis = np.array(["text"] * 50 + ["speech"] * 50)
    correct = np.array([True] * 45 + [False] * 5 + [True] * 25 + [False] * 25)
    weights = sampling_weights({"input": axis}, {"input": axis}, correct, strength=1.0, limit=3.0)
    assert weights.mean() == np.float64(1.0) or abs(weights.mean() - 1) < 1e-9
    assert weights[-1] > 1 > weights[0]


def test_what_is_right_everywhere_weighs_the_same() -> None:
    axis = np.array(["a", "b"] * 10)
    weights = sampling_weights(
        {"x": axis}, {"x": axis}, np.ones(20, dtype=bool), strength=1.0, limit=3.0
    )
    assert (weights == 1).all()


def test_slices_that_validation_lacks_are_left_alone() -> None:
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
def test_weights_are_positive_bounded_and_average_one(
    rows: list[tuple[str, bool]], strength: float, limit: float
) -> None:
    axis = np.array([name for name, _ in rows])
    correct = np.array([right for _, right in rows])
    weights = sampling_weights({"x": axis}, {"x": axis}, correct, strength=strength, limit=limit)
    assert (weights > 0).all()
    assert abs(weights.mean() - 1) < 1e-9
    assert weights.max() / weights.min() <= limit**2 * (1 + 1e-9)
