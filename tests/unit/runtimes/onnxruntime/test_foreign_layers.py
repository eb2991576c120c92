"""Layers of graphs that other tools wrote: found by their products, compared after conversion."""

import numpy as np
import onnx
import pytest

from compressor.analysis.layerwise import compare_layers
from compressor.runtimes.onnxruntime.layers import OnnxLayers
from tests.support.foreign_graphs import (
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    residual_network,
)


@pytest.mark.parametrize(
    ("model", "samples", "layers"),
    [
        # "n1" is folded into "r1" by both.
        (residual_network(), {"image": IMAGES}, {"r1", "c2", "c3", "scores"}),
        (feed_forward(60.0), {"tokens": TOKENS}, {"active", "features"}),
    ],
)
def test_layers_of_a_foreign_graph_are_compared_with_their_integers(
    tmp_path, model, samples, layers
):
    result = Optimized(model, tmp_path, samples)
    parent, optimized = (OnnxLayers(path, 1) for path in (result.parent, result.out))
    comparison = compare_layers(parent, optimized, samples)
    assert {layer.layer for layer in comparison.layers} == layers
    assert not comparison.only_a
    for layer in comparison.layers:
        assert layer.added is not None
        assert 0 < layer.added < 0.01, layer


def test_a_layer_with_another_weight_has_the_largest_added_error(tmp_path):
    model = residual_network()
    for path in (tmp_path / "a", tmp_path / "b"):
        path.mkdir()
        onnx.save(model, path / "model.onnx")
        (tensor,) = [each for each in model.graph.initializer if each.name == "k3"]
        array = onnx.numpy_helper.to_array(tensor) + np.float32(0.1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, "k3"))
    first, second = (OnnxLayers(tmp_path / name, 1) for name in "ab")
    comparison = compare_layers(first, second, {"image": IMAGES})
    assert comparison.layers[0].layer == comparison.parts_at == "c3"
    assert comparison.layers[1].added < 1e-10
