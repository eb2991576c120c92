"""Ranges of values inside a graph, over all batches."""

import numpy as np
import onnx_ir as ir
import pytest

from compressor.runtimes.onnxruntime import observation
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from tests.support.engines import model_of, node


def test_ranges_are_the_largest_magnitudes_over_all_batches():
    nodes = [node("Neg", "x", "minus"), node("Log", "x", "logits")]
    model = ir.from_proto(model_of(nodes, {}, ("n", 2)))
    batches = [{"x": np.array([values], np.float32)} for values in ((1, 2), (5, 1))]
    magnitudes = measure_magnitudes(model, ["x", "minus", "logits"], batches)
    assert magnitudes == {"x": 5.0, "minus": 5.0, "logits": pytest.approx(np.log(5))}
    infinite = [{"x": np.array([[0, 1]], np.float32)}, *batches]
    assert measure_magnitudes(model, ["logits"], infinite) == {"logits": np.inf}
    undefined = [{"x": np.array([[-1, 1]], np.float32)}, *batches]
    assert np.isnan(measure_magnitudes(model, ["logits"], undefined)["logits"])


def test_ranges_of_a_graph_beyond_the_limit_of_a_message(monkeypatch):
    written = []
    save = observation.save_model
    monkeypatch.setattr(observation, "PROTOBUF_LIMIT_BYTES", 1000)
    monkeypatch.setattr(
        observation, "save_model", lambda *a, **k: written.append(save(*a, **k)) or written[-1]
    )
    constants = {"w": np.full((2, 200), 3, np.float32)}
    model = ir.from_proto(model_of([node("MatMul", "x w", "logits")], constants, ("n", 2)))
    batches = [{"x": np.ones((1, 2), np.float32)}]
    assert measure_magnitudes(model, ["x", "logits"], batches) == {"x": 1.0, "logits": 6.0}
    assert written == [["model.onnx", "model.onnx.data"]]
