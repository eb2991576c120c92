"""Weights that lie in another file when a graph is saved."""

import numpy as np
import onnx
import onnxruntime

from compressor.graphs.files import typed_model
from compressor.graphs.saving import save_model
from tests.support.engines import node
from tests.support.foreign_graphs import graph, weight


def test_weights_in_the_file_of_another_graph_are_copied(tmp_path):
    parent, out = tmp_path / "parent", tmp_path / "out"
    parent.mkdir()
    out.mkdir()
    model = graph([node("MatMul", "x w", "y")], {"w": weight(64, 8)}, {"x": [2, 64]}, {"y": [2, 8]})
    file = str(parent / "model.onnx")
    onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=0)
    save_model(typed_model(onnx.load(file, load_external_data=False), parent), out, external=False)
    assert [each.name for each in out.iterdir()] == ["model.onnx"]
    feeds = {"x": np.ones((2, 64), np.float32)}
    expected, actual = (
        onnxruntime.InferenceSession(folder / "model.onnx").run(None, feeds)[0]
        for folder in (parent, out)
    )
    assert np.array_equal(actual, expected)
