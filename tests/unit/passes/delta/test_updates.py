"""Errors of updates are those of the products B·A, computed without them."""

import numpy as np
import pytest

from passes.delta.updates import relative_errors, scale_axis

LAYER = "base_model.model.layers.0.q_proj"


def test_the_error_of_a_product_is_that_of_the_whole_matrices():
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((4, 30), (20, 4)))
    noisy = [values + 1e-3 * random.normal(size=values.shape) for values in (a, b)]
    rounded_a, rounded_b = (values.astype(np.float32) for values in noisy)
    names = (f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight")
    errors = relative_errors(
        dict(zip(names, (a, b), strict=True)), dict(zip(names, (rounded_a, rounded_b), strict=True))
    )
    exact, product = b.astype(float) @ a, rounded_b.astype(float) @ rounded_a
    expected = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    assert errors == {LAYER: pytest.approx(expected, rel=1e-6)}


def test_factors_of_ia3_are_compared_by_their_distance_from_one():
    name = f"{LAYER}.ia3_l"
    exact, rounded = (np.array([[value], [1]], np.float32) for value in (1.01, 1.02))
    assert relative_errors({name: exact}, {name: rounded})[name] == pytest.approx(1, rel=1e-4)


def test_an_update_that_is_zero_and_stays_zero_has_no_error():
    tensors = {
        f"{LAYER}.lora_A.weight": np.ones((2, 3), np.float32),
        f"{LAYER}.lora_B.weight": np.zeros((3, 2), np.float32),
    }
    assert relative_errors(tensors, tensors) == {LAYER: 0.0}


def test_rank_vectors_are_rows_of_a_and_columns_of_b():
    assert scale_axis(f"{LAYER}.lora_A.weight", (8, 64)) == 0
    assert scale_axis(f"{LAYER}.lora_B.weight", (64, 8)) == 1
    assert scale_axis(f"{LAYER}.lora_embedding_B", (64, 8)) == 1
    assert scale_axis(f"{LAYER}.ia3_l", (64, 1)) == 1
    assert scale_axis(f"{LAYER}.ia3_l", (1, 64)) == 0
    assert scale_axis(f"{LAYER}.lora_magnitude_vector.weight", (64,)) == 0
