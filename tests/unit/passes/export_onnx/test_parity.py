"""Comparison of two models, on sessions that are plain functions."""

import numpy as np
import pytest

from compressor.errors import DataError, NumericalError, ParityError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session
from passes.export_onnx.config import ParityConfig
from passes.export_onnx.parity import compare


class FunctionSession(Session):
    runtime, output_names = "plain 1", ("logits",)
    inputs = (InputSpec("x", "float32", ("batch", 3)),)

    def __init__(self, function):
        self.function = function

    def compute(self, feeds):
        return {"logits": self.function(feeds["x"])}


SAMPLES = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
BATCHES = [{"x": SAMPLES[:4]}, {"x": SAMPLES[4:8]}, {"x": SAMPLES[8:]}]
CONFIG = ParityConfig(batch_size=4)


def compare_functions(reference, exported, config=CONFIG):
    return compare(FunctionSession(reference), FunctionSession(exported), BATCHES, config)


def test_equal_models_have_no_deviation():
    single, batched = compare_functions(np.copy, np.copy)
    assert (single.batch_size, batched.batch_size) == (1, 4)
    assert (batched.samples, batched.max_abs, batched.agreement) == (10, 0.0, 1.0)
    assert batched.cosine == pytest.approx(1.0)


def test_a_graph_of_one_batch_size_is_compared_at_that_size():
    exported = FunctionSession(np.copy)
    exported.inputs = (InputSpec("x", "float32", (2, 3)),)
    [result] = compare(FunctionSession(np.copy), exported, [{"x": SAMPLES[:5]}], CONFIG)
    assert (result.batch_size, result.samples) == (2, 4)
    with pytest.raises(DataError, match="fixed batch size 2"):
        compare(FunctionSession(np.copy), exported, [{"x": SAMPLES[:1]}], CONFIG)


def test_an_error_that_only_batches_have_is_found():
    def wrong_in_batches(x):
        return x + 0.1 * (len(x) > 1)

    with pytest.raises(ParityError, match="at batch size 4") as caught:
        compare_functions(np.copy, wrong_in_batches)
    assert "at batch size 1:" not in caught.value.what


def test_the_worst_sample_is_named():
    def wrong_for_last(x):
        return x + 5 * (x == SAMPLES[9]).all(axis=1, keepdims=True)

    with pytest.raises(ParityError, match=r"max\|Δ\| 5 > 0.001 \(sample 9, output logits\)"):
        compare_functions(np.copy, wrong_for_last)


def test_a_tie_counts_as_agreement_and_a_flip_does_not():
    def tied(x):
        logits = [np.full(len(x), 1.0), np.full(len(x), 1.0), x[:, 0] - 9]
        return np.stack(logits, axis=1).astype(np.float32)

    def nudged(x):
        return tied(x) + np.array([0, 1e-4, 0], np.float32)

    def flipped(x):
        return tied(x)[:, [2, 2, 0]]

    assert compare_functions(tied, nudged)[0].agreement == 1.0
    with pytest.raises(ParityError, match=r"answers agree in 0\.0%"):
        compare_functions(tied, flipped, ParityConfig(batch_size=4, max_abs=0.5))


def test_a_choice_that_float32_does_not_resolve_may_be_that_of_float64():
    def best_first(x, order):
        return np.where(x[:, :1] > 0, np.sort(x, axis=1)[:, order], x)

    def exported(x):
        return best_first(x, [0, 1, 2])

    def compare_with(precise):
        sessions = FunctionSession(lambda x: best_first(x, [1, 0, 2])), FunctionSession(exported)
        return compare(*sessions, BATCHES, CONFIG, precise=precise)

    assert compare_with(lambda batch: {"logits": exported(batch["x"])})[1].max_abs == 0
    with pytest.raises(ParityError, match="at batch size 1"):
        compare_with(lambda batch: {"logits": best_first(batch["x"], [2, 0, 1])})
    with pytest.raises(ParityError, match="at batch size 4"):
        compare_with(lambda _: None)


def test_nan_exceeds_every_limit_and_is_an_error_of_its_own_in_the_reference():
    def broken(x):
        return np.full_like(x, np.nan)

    with pytest.raises(ParityError, match=r"inf > 0\.001"):
        compare_functions(np.copy, broken)
    with pytest.raises(NumericalError, match="10 of 10 samples"):
        compare_functions(broken, np.copy)


def test_outputs_of_another_shape_are_an_error():
    with pytest.raises(ParityError, match=r"output logits: \[4, 2\] where torch gives \[4, 3\]"):
        compare_functions(np.copy, lambda x: x[:, :2])


def test_samples_that_are_compared_with_each_other_are_so_in_each_batch():
    def similarities(x):
        return x @ x.T

    single, batched = compare_functions(similarities, similarities)
    assert (single.samples, batched.samples, batched.max_abs) == (10, 10, 0.0)
    with pytest.raises(ParityError, match="at batch size 1"):
        compare_functions(similarities, lambda x: similarities(x) + (len(x) == 1))


def test_the_classes_of_tokens_and_of_pixels_are_compared_one_by_one():
    def tokens(x):
        return np.stack([x, -x], axis=1)

    _, batched = compare_functions(tokens, tokens)
    assert batched.agreement == 1.0
    with pytest.raises(ParityError, match=r"answers agree in 50\.0%"):
        compare_functions(tokens, lambda x: np.stack([x, x], axis=1))


def test_a_parent_that_mixes_the_samples_of_a_batch_is_named():
    def mixing(x):
        return x - x.mean(axis=0)

    with pytest.raises(ParityError, match="depend on the other samples of a batch") as caught:
        compare_functions(mixing, mixing)
    assert "compute each sample by itself" in caught.value.remedy
    with pytest.raises(ParityError, match="does not compute what the torch model does"):
        compare_functions(np.copy, mixing)


def test_a_parent_that_draws_random_numbers_is_named():
    draws = np.random.default_rng(0)

    def masking(x):
        return x * draws.random(x.shape)

    with pytest.raises(ParityError, match="differ from run to run: it draws random numbers"):
        compare_functions(masking, np.copy)


def test_logits_that_a_detector_masks_are_compared_where_they_are_not():
    def masked(x):
        return np.where(np.arange(x.shape[1]) == 1, -np.inf, x)

    compare_functions(masked, masked)
    with pytest.raises(ParityError, match="does not compute what the torch model does"):
        compare_functions(masked, np.copy)
    with pytest.raises(ParityError, match="does not compute what the torch model does"):
        compare_functions(masked, lambda x: masked(x + 0.1))
    with pytest.raises(NumericalError, match="10 of 10 samples"):
        compare_functions(lambda x: np.full_like(x, -np.inf), masked)
