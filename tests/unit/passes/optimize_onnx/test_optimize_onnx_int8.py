"""INT8 of foreign graphs: what ONNX Runtime computes with integers, and how close it stays."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import DataError, NumericalError, RequirementError
from compressor.graphs.lint.targets import lint
from compressor.runtimes.onnxruntime.integer_kernels import EMULATED_PRODUCTS, EXACT_PRODUCTS
from compressor.runtimes.onnxruntime.session import OnnxSession
from passes.optimize_onnx.config import OptimizeOnnxConfig
from tests.support.engines import node
from tests.support.foreign_graphs import (
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    optimized_operators,
    reseed,
    residual_network,
    weight,
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    reseed()
    folder = tmp_path_factory.mktemp("n")
    return Optimized(residual_network(), folder, {"image": IMAGES}, smoothing=False)


def test_every_product_and_what_lies_between_is_computed_with_integers(network, tmp_path):
    operators = optimized_operators(network.out / "model.onnx", tmp_path)
    assert operators.count("QLinearConv") == 3
    assert {"QLinearAdd", "QLinearMul", "QLinearSigmoid"} <= set(operators)
    assert not {"Conv", "Gemm", "MatMul", "BatchNormalization"} & set(operators)
    assert lint(onnx.load(network.out / "model.onnx"), "onnxruntime") == []


def test_results_stay_close_and_the_manifest_says_how_close(network):
    assert network.error() < 0.04
    difference = network.summary["against_parent"]["scores"]
    assert difference["relative_error"] == pytest.approx(network.error(emulated=False), rel=0.3)
    assert 0.95 < difference["cosine"] < 1  # 0.999 where integer products do not saturate
    assert network.summary["products"] == 4


def test_inputs_and_outputs_keep_their_names_types_and_shapes(network):
    parent = onnx.load(network.parent / "model.onnx").graph
    assert list(network.graph.input) == list(parent.input)
    assert list(network.graph.output) == list(parent.output)


def test_bias_correction_removes_the_mean_error(tmp_path_factory):
    model, shifts = residual_network(), {}
    for corrected in (False, True):
        result = Optimized(
            model,
            tmp_path_factory.mktemp("b"),
            {"image": IMAGES},
            bias_correction=corrected,
        )
        outputs = [values.mean(axis=0) for values in result.outputs()]
        shifts[corrected] = float(np.abs(outputs[1] - outputs[0]).mean())
    assert shifts[True] < 0.7 * shifts[False]


def test_graphs_for_tensorrt_are_symmetric_and_pass_its_lint(tmp_path):
    result = Optimized(residual_network(), tmp_path, {"image": IMAGES}, target="tensorrt")
    zeros = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in result.graph.initializer
        if tensor.data_type in {TensorProto.INT8, TensorProto.UINT8} and "zero" in tensor.name
    ]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert lint(onnx.load(result.out / "model.onnx"), "tensorrt", ["sm86"]) == []
    assert result.error() < 0.05


def test_outlier_channels_are_smoothed_where_that_helps(tmp_path_factory):
    samples, model = {"tokens": TOKENS}, feed_forward(outlier=60.0)
    errors = {
        smoothing: Optimized(
            model, tmp_path_factory.mktemp("s"), samples, smoothing=smoothing
        ).error()
        for smoothing in (False, True)
    }
    assert errors[True] < 0.6 * errors[False]
    plain = Optimized(feed_forward(), tmp_path_factory.mktemp("p"), samples)
    assert plain.summary["smoothed"] == {}


def test_embedding_tables_are_stored_as_integers(tmp_path):
    result = Optimized(feed_forward(), tmp_path, {"tokens": TOKENS})
    assert result.summary["embeddings"] == ["table"]
    before, after = result.sizes()
    assert after < 0.4 * before
    assert result.error() < 0.03


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_embedding_tables_for_tensorrt_stay_in_float(tmp_path, precision):
    fields = {"target": "tensorrt", "precision": precision}
    result = Optimized(feed_forward(), tmp_path, {"tokens": TOKENS}, **fields)
    assert "embeddings" not in result.summary
    assert lint(onnx.load(result.out / "model.onnx"), "tensorrt", ["sm86"]) == []
    with pytest.raises(ValueError, match="TensorRT has no embedding lookup of integers"):
        OptimizeOnnxConfig.model_validate(fields | {"quantize_embeddings": True})


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_old_graphs_are_upgraded_and_compute_the_same(tmp_path, opset):
    result = Optimized(residual_network(opset), tmp_path, {"image": IMAGES})
    assert any(f"upgraded from opset {opset} to 13" in note for note in result.notes)
    assert result.error() < 0.04


def test_ignored_products_stay_in_float(tmp_path):
    result = Optimized(residual_network(), tmp_path, {"image": IMAGES}, ignore=["c3", "scor*"])
    assert result.summary["kept_float"] == ["c3", "scores"]
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert operators.count("QLinearConv") == 2
    assert "Gemm" in operators


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(RequirementError, match="no product of this graph: scoers") as error:
        Optimized(residual_network(), tmp_path, {"image": IMAGES}, ignore=["scoers"])
    assert "did you mean scores?" in str(error.value.remedy)


def test_keep_float_reaches_its_limit_with_the_most_sensitive_product(tmp_path_factory):
    fields, model = {"smoothing": False}, feed_forward(60.0)
    plain = Optimized(model, tmp_path_factory.mktemp("a"), {"tokens": TOKENS}, **fields)
    limit = {"data": "c", "metric": "relative_error", "max_drop": 0.02, "max_products": 1}
    kept = Optimized(
        model,
        tmp_path_factory.mktemp("k"),
        {"tokens": TOKENS},
        keep_float=limit,
        **fields,
    )
    assert plain.error() > 0.02 > kept.error()
    assert kept.summary["kept_float"] == ["wide"]


def test_a_limit_that_cannot_be_met_is_an_error(tmp_path):
    limit = {"data": "c", "metric": "relative_error", "max_drop": 1e-6, "max_products": 1}
    with pytest.raises(RequirementError, match="cannot meet its limit: relative_error is"):
        Optimized(residual_network(), tmp_path, {"image": IMAGES}, keep_float=limit)


def test_values_that_are_not_finite_are_named(tmp_path):
    images = IMAGES.copy()
    images[3, 0, 0, 0] = np.inf
    with pytest.raises(NumericalError, match="values are not finite on samples of 'c'"):
        Optimized(residual_network(), tmp_path, {"image": images})


def test_samples_of_another_shape_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"image: shape \[8, 3, 8, 8\]"):
        Optimized(residual_network(), tmp_path, {"image": IMAGES[:, :, :8, :8]})


def test_a_quantized_graph_is_refused_with_what_it_has(network, tmp_path):
    model = onnx.load(network.out / "model.onnx")
    with pytest.raises(RequirementError, match=r"quantized already: .* QuantizeLinear"):
        Optimized(model, tmp_path, {"image": IMAGES})


def test_a_graph_without_products_is_refused(tmp_path):
    model = graph([node("Relu", "x", "y")], {}, {"x": ["N", 4]}, {"y": ["N", 4]})
    with pytest.raises(RequirementError, match="no convolution or matrix product"):
        Optimized(model, tmp_path, {"x": np.ones((4, 4), np.float32)})


def test_control_flow_and_operators_of_other_domains_are_left_alone(tmp_path):
    branches = [
        helper.make_graph(
            [node("Mul", f"r {scale}", f"out_{scale}")],
            scale,
            [],
            [helper.make_tensor_value_info(f"out_{scale}", TensorProto.FLOAT, None)],
        )
        for scale in ("one", "two")
    ]
    nodes = [
        node("Conv", "x k", "r", pads=[1, 1, 1, 1]),
        node("ReduceSum", "r", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node(
            "If", ["positive"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
        ),
        helper.make_node("QuickGelu", ["chosen"], ["y"], domain="com.microsoft"),
    ]
    weights = {
        "k": weight(4, 3, 3, 3),
        "one": np.float32(1),
        "two": np.float32(2),
        "zero": np.float32(0),
    }
    model = graph(
        nodes,
        weights,
        {"x": ["N", 3, 8, 8]},
        {"y": ["N", 4, 8, 8]},
        opsets=[helper.make_opsetid("com.microsoft", 1)],
    )
    result = Optimized(
        model, tmp_path, {"x": IMAGES[:, :, :8, :8]}, calibration={"data": "c", "batch_size": 24}
    )
    assert {"If", "QuickGelu"} <= set(result.operators())
    assert result.error() < 0.04


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_layers_that_share_a_weight_read_the_same_integers(tmp_path, target):
    nodes = [
        node("MatMul", "x w", "p1"),
        node("Add", "p1 b1", "a1"),
        node("Relu", "a1", "r1"),
        node("MatMul", "r1 w", "p2"),
        node("Add", "p2 b2", "a2"),
        node("Relu", "a2", "r2"),
        node("Gemm", "r2 w b1", "y", transB=1),
    ]
    weights = {"w": weight(32, 32) * 4, "b1": weight(1, 32)[0], "b2": weight(1, 32)[0]}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 32]})
    samples = {"x": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)}
    result = Optimized(model, tmp_path, samples, target=target)
    assert result.summary["products"] == 3
    assert result.error() < 0.04
    integers = [t for t in result.graph.initializer if t.dims == [32, 32]]
    assert [t.data_type for t in integers] == [TensorProto.INT8] * 2  # by column, and by row


def test_names_of_a_foreign_graph_do_not_collide_with_ours(tmp_path):
    model = residual_network()
    for tensor in model.graph.initializer:
        if tensor.name == "gamma":
            tensor.name = "k2.axis0.scale"
    for each in model.graph.node:
        each.input[:] = ["k2.axis0.scale" if name == "gamma" else name for name in each.input]
    result = Optimized(model, tmp_path, {"image": IMAGES}, simplify=False)
    assert result.error() < 0.04


def test_the_same_samples_give_the_same_bytes(tmp_path_factory):
    contents = {
        (
            Optimized(residual_network_once, tmp_path_factory.mktemp("r"), {"image": IMAGES}).out
            / "model.onnx"
        ).read_bytes()
        for _ in range(2)
    }
    assert len(contents) == 1


residual_network_once = residual_network()


def test_graphs_open_with_exact_products(tmp_path):
    """Each weight has a zero-point of its own, which ONNX Runtime then rewrites."""
    same = {"k2": weight(8, 8, 3, 3), "k1": weight(8, 3, 3, 3)}
    nodes = [
        node("Conv", "image k1", "c1", pads=[1, 1, 1, 1]),
        node("Conv", "c1 k2", "c2", pads=[1, 1, 1, 1]),
        node("Conv", "c2 k3", "y", pads=[1, 1, 1, 1]),
    ]
    weights = {**same, "k3": weight(8, 8, 3, 3)}
    model = graph(nodes, weights, {"image": ["N", 3, 16, 16]}, {"y": ["N", 8, 16, 16]})
    result = Optimized(model, tmp_path, {"image": IMAGES}, precision="int8")
    shared = [each.input[2] for each in result.graph.node if each.op_type == "DequantizeLinear"]
    weights_read = [name for name in shared if "zero_point" in name or "axis0" in name]
    assert len(weights_read) == len(set(weights_read)) == 3
    outputs = []
    for settings in (EXACT_PRODUCTS, EMULATED_PRODUCTS):
        with OnnxSession(result.out, 1, "cpu", settings) as session:
            outputs.append(session.run({"image": IMAGES})["y"])
    exact, emulated = outputs
    assert np.linalg.norm(exact - emulated) < 0.01 * np.linalg.norm(emulated)
