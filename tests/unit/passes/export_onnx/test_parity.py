"""The comparison's arithmetic, on sessions that are plain functions."""

import numpy as np
import pytest

from compressor.errors import NumericalError, ParityError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session
from passes.export_onnx.parity import compare
from passes.export_onnx.step import ParityConfig


class Plain(Session):
    runtime, output_names = "plain 1", ("logits",)
    inputs = (InputSpec("x", "float32", ("batch", 3)),)

    def __init__(self, function):
        self.function = function

    def compute(self, feeds):
        return {"logits": self.function(feeds["x"])}


SAMPLES = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
BATCHES = [{"x": SAMPLES[:4]}, {"x": SAMPLES[4:8]}, {"x": SAMPLES[8:]}]
CONFIG = ParityConfig(batch_size=4)


def test_equal_models_are_equal():
    single, many = compare(Plain(np.copy), Plain(np.copy), BATCHES, CONFIG)
    assert (single.batch_size, many.batch_size) == (1, 4)
    assert (many.samples, many.max_abs, many.agreement) == (10, 0.0, 1.0)
    assert many.cosine == pytest.approx(1.0)


def test_an_error_that_shows_only_in_batches_is_found():
    def mixed(x):
        return x + 0.1 * (len(x) > 1)

    with pytest.raises(ParityError, match="at batch size 4") as caught:
        compare(Plain(np.copy), Plain(mixed), BATCHES, CONFIG)
    assert "at batch size 1:" not in caught.value.what


def test_the_worst_sample_is_named():
    def one_off(x):
        return x + 5 * (x == SAMPLES[9]).all(axis=1, keepdims=True)

    with pytest.raises(ParityError, match=r"max\|Δ\| 5 > 0.001 \(sample 9, output logits\)"):
        compare(Plain(np.copy), Plain(one_off), BATCHES, CONFIG)


def test_a_tie_is_no_disagreement_but_a_flip_is():
    def tied(x):
        return np.stack([np.full(len(x), 1.0), np.full(len(x), 1.0), x[:, 0] - 9], axis=1).astype(
            np.float32
        )

    def flipped(x):
        return tied(x) + np.array([0, 1e-4, 0], np.float32)

    assert compare(Plain(tied), Plain(flipped), BATCHES, CONFIG)[0].agreement == 1.0
    with pytest.raises(ParityError, match=r"answers agree in 0\.0%"):
        compare(
            Plain(tied),
            Plain(lambda x: tied(x)[:, [2, 2, 0]]),
            BATCHES,
            ParityConfig(batch_size=4, max_abs=0.5),
        )


def test_nan_in_the_export_is_as_wrong_as_can_be_and_in_the_reference_an_error_of_its_own():
    def broken(x):
        return np.full_like(x, np.nan)

    with pytest.raises(ParityError, match=r"inf > 0\.001"):
        compare(Plain(np.copy), Plain(broken), BATCHES, CONFIG)
    with pytest.raises(NumericalError, match="10 of 10 samples"):
        compare(Plain(broken), Plain(np.copy), BATCHES, CONFIG)


def test_another_shape_is_told():
    with pytest.raises(ParityError, match=r"output logits: \[10, 2\] where torch gives \[10, 3\]"):
        compare(Plain(np.copy), Plain(lambda x: x[:, :2]), BATCHES, CONFIG)
