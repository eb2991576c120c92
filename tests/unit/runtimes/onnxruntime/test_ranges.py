"""Ranges of values inside a graph, over all batches."""

import numpy as np
import pytest

from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from tests.support.engines import model_of, node


def test_ranges_are_the_largest_magnitudes_over_all_batches():
    model = model_of([node("Neg", "x", "minus"), node("Log", "x", "logits")], {}, ("n", 2))
    batches = [{"x": np.array([values], np.float32)} for values in ((1, 2), (5, 1))]
    magnitudes = measure_magnitudes(model, ["x", "minus", "logits"], batches)
    assert magnitudes == {"x": 5.0, "minus": 5.0, "logits": pytest.approx(np.log(5))}
    infinite = [{"x": np.array([[0, 1]], np.float32)}, *batches]
    assert measure_magnitudes(model, ["logits"], infinite) == {"logits": np.inf}
    undefined = [{"x": np.array([[-1, 1]], np.float32)}, *batches]
    assert np.isnan(measure_magnitudes(model, ["logits"], undefined)["logits"])
