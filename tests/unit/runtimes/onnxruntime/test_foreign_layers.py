"""Layers of graphs that other tools wrote: found by their products, compared after conversion."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.analysis.layerwise import compare_layers
from compressor.runtimes.onnxruntime.layers import OnnxLayers
from tests.support.engines import node
from tests.support.foreign_graphs import (
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    residual_network,
    weight,
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


@pytest.mark.parametrize("is_read_outside", [False, True])
def test_a_layer_ends_where_a_branch_reads_it(tmp_path, is_read_outside):
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(operator, "product", f"{name}_y")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
        for name, operator in (("then", "Relu"), ("else", "Identity"))
    }
    if not is_read_outside:  # the product's only reader is in a branch
        [constant] = branches["else_branch"].node
        constant.CopyFrom(node("Identity", "x", "else_y"))
    nodes = [
        node("MatMul", "x w", "product"),
        node("If", "yes", "chosen", **branches),
        node("Relu", "product" if is_read_outside else "chosen", "active"),
        node("Add", "chosen active", "y"),
    ]
    weights = {"w": weight(8, 8), "yes": np.array(True)}
    onnx.save(graph(nodes, weights, {"x": ["N", 8]}, {"y": None}), tmp_path / "model.onnx")
    layers = OnnxLayers(tmp_path, 1)
    assert layers.reads == {"product": "x"}
    trace = layers.trace({"x": IMAGES.reshape(24, -1)[:, :8]})
    assert trace.answers["y"].shape == (24, 8)


def test_weights_of_einsum_and_of_another_type_are_layers(tmp_path):
    nodes = [
        node("Einsum", "w x", "a", equation="io,ni->no"),
        node("Relu", "a", "r"),
        node("Cast", "h", "v", to=TensorProto.FLOAT),
        node("MatMul", "r v", "y"),
    ]
    weights = {"w": weight(32, 16), "h": weight(16, 8).astype(np.float16)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": None})
    rows = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    result = Optimized(model, tmp_path, {"x": rows})
    parent, optimized = (OnnxLayers(path, 1) for path in (result.parent, result.out))
    comparison = compare_layers(parent, optimized, {"x": rows})
    assert {layer.layer for layer in comparison.layers} == {"r", "y"}


@pytest.mark.parametrize(("shape", "samples"), [([1, 32], 16), ([4, 32], 12), ([32], 16)])
def test_layers_are_compared_call_by_call_where_a_graph_fixes_the_samples(tmp_path, shape, samples):
    model = graph([node("MatMul", "x w", "y")], {"w": weight(32, 8)}, {"x": shape}, {"y": None})
    rows = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    result = Optimized(model, tmp_path, {"x": rows})
    parent, optimized = (OnnxLayers(path, 1) for path in (result.parent, result.out))
    comparison = compare_layers(parent, optimized, {"x": rows[: samples + 2]})
    assert comparison.samples == samples
    assert 0 < comparison.layers[0].added < 0.01
    assert comparison.answers["y"] == pytest.approx(comparison.layers[0].error)
