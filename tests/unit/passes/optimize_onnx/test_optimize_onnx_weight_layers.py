"""LSTM layers and transposed convolutions of foreign graphs in INT8."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compressor.errors import RequirementError
from compressor.graphs.contents import graph_contents
from compressor.runtimes.onnxruntime import session
from compressor.runtimes.onnxruntime.integer_kernels import EXACT_PRODUCTS
from compressor.runtimes.onnxruntime.session import OnnxSession
from passes.optimize_onnx import verification
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.planned import contents_problems
from tests.support.engines import node
from tests.support.foreign_graphs import IMAGES, Optimized, graph, weight

DRAW = np.random.default_rng(11)
FRAMES = DRAW.normal(size=(16, 20, 1, 12)).astype(np.float32)
HIDDEN = 24


def recurrent(directions=2, *, head=True, **attributes):
    """Return an LSTM with another below it in the float graph, and a product if it has a head."""
    weights = {
        "w": weight(directions, 4 * HIDDEN, 12) * 6,
        "r": weight(directions, 4 * HIDDEN, HIDDEN) * 4,
        "b": DRAW.normal(size=(directions, 8 * HIDDEN)).astype(np.float32) * 0.1,
    }
    direction = "bidirectional" if directions == 2 else "forward"
    lstm = node("LSTM", "frames w r b", "states", hidden_size=HIDDEN, direction=direction)
    lstm.attribute.extend(onnx.helper.make_attribute(*pair) for pair in attributes.items())
    nodes, outputs = [lstm], {"states": None}
    if head:
        weights["k"] = weight(HIDDEN, 5)
        nodes.append(node("MatMul", "states k", "scores"))
        outputs = {"scores": None}
    return graph(nodes, weights, {"frames": [20, 1, 12]}, outputs, opset=14)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_multiplies_integers_and_stays_close(tmp_path, directions):
    result = Optimized(recurrent(directions), tmp_path, {"frames": FRAMES})
    assert "DynamicQuantizeLSTM" in result.operators()
    assert "LSTM" not in result.operators()
    before, after = result.sizes()
    assert after < 0.45 * before
    assert (
        0 < result.summary["against_parent"]["scores"]["relative_error"] < 0.3
    )  # 0.05 with exact products
    assert (result.summary["products"], result.summary["float_operators"]) == (2, {})


def test_scales_are_those_of_each_gate_of_each_unit(tmp_path):
    result = Optimized(recurrent(), tmp_path, {"frames": FRAMES})
    scales = {tuple(t.dims) for t in result.graph.initializer if "grid" in t.name}
    assert scales == {(2, 4 * HIDDEN)}


def test_a_graph_of_recurrent_layers_alone_is_quantized(tmp_path):
    result = Optimized(recurrent(head=False), tmp_path, {"frames": FRAMES})
    assert result.operators() == ["DynamicQuantizeLSTM"]
    assert result.summary["products"] == 1


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({"ignore": ["states"]}, {}),
        ({"target": "tensorrt"}, {}),
        ({}, {"directions": 1, "layout": 0, "input_forget": 0, "clip": 3.0}),
    ],
)
def test_layers_that_stay_float_are_told(tmp_path, fields, model):
    result = Optimized(recurrent(**model), tmp_path, {"frames": FRAMES}, **fields)
    if model:
        assert "DynamicQuantizeLSTM" in result.operators()
        return
    assert "LSTM" in result.operators()
    types = {t.name: t.data_type for t in result.graph.initializer}
    assert (types["w"], types["r"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    told = [*result.summary["kept_float"], *result.summary["float_operators"]]
    assert told == (["states"] if "ignore" in fields else ["LSTM"])


def test_ignoring_the_only_layer_leaves_nothing_to_quantize(tmp_path):
    with pytest.raises(RequirementError, match="leaves no product"):
        Optimized(recurrent(head=False), tmp_path, {"frames": FRAMES}, ignore=["states"])


def upsampling():
    """Return a transposed convolution between two products, with outputs of different sizes."""
    kernel = weight(12, 6, 4, 4) * np.geomspace(0.01, 10, 6, dtype=np.float32)[:, None, None]
    nodes = [
        node("Conv", "image k", "c"),
        node("ConvTranspose", "c up bias", "wide", strides=[2, 2]),
    ]
    weights = {"k": weight(12, 3, 1, 1), "up": kernel, "bias": np.ones(6, np.float32)}
    return graph(nodes, weights, {"image": ["N", 3, 16, 16]}, {"wide": None})


def test_kernels_of_transposed_convolutions_are_stored_with_a_scale_for_each_output(tmp_path):
    result = Optimized(upsampling(), tmp_path, {"image": IMAGES})
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    assert tensors["up.integers"].data_type == TensorProto.INT8
    assert list(tensors["up.scales"].dims) == [6]
    assert "up" not in tensors
    assert result.error() < 0.03
    assert result.summary["float_operators"] == {"ConvTranspose": 1}


def test_ignored_kernels_of_transposed_convolutions_stay_in_float(tmp_path):
    result = Optimized(upsampling(), tmp_path, {"image": IMAGES}, ignore=["wide"])
    assert "up" in {tensor.name for tensor in result.graph.initializer}
    assert result.summary["kept_float"] == ["wide"]


def transposed():
    nodes = [
        node("Conv", "image k", "c"),
        node("ConvTranspose", "c up", "y", strides=[2, 2]),
    ]
    weights = {"k": weight(8, 3, 3, 3), "up": weight(8, 4, 2, 2)}
    return graph(nodes, weights, {"image": ["N", 3, 16, 16]}, {"y": ["N", 4, 28, 28]})


@pytest.mark.parametrize(
    ("model", "samples"),
    [(recurrent(), {"frames": FRAMES[0]}), (transposed(), {"image": IMAGES})],
    ids=["lstm", "transposed"],
)
def test_layers_run_with_exact_products(tmp_path, monkeypatch, model, samples):
    """No two weights share a zero-point, and each has one: ONNX Runtime rewrites them."""
    monkeypatch.setattr(session, "integer_products_saturate", lambda: True)
    monkeypatch.setattr(verification, "integer_products_saturate", lambda: True)
    calibration = {"frames": FRAMES} if "frames" in samples else samples
    result = Optimized(model, tmp_path, calibration, precision="int8")
    [note] = [note for note in result.notes if "lacks VNNI" in note]
    assert "applications on such processors have to set" in note
    with OnnxSession(result.out, 1, "cpu", EXACT_PRODUCTS) as exact:
        assert np.isfinite(next(iter(exact.compute(samples).values()))).all()


def test_a_graph_that_shares_weights_is_measured_with_saturating_products(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "integer_products_saturate", lambda: True)
    monkeypatch.setattr(verification, "integer_products_saturate", lambda: True)
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w", "y")]
    model = graph(nodes, {"w": weight(32, 32)}, {"x": ["N", 32]}, {"y": ["N", 32]})
    x = DRAW.normal(size=(16, 32)).astype(np.float32)
    result = Optimized(model, tmp_path, {"x": x}, precision="int8", simplify=False)
    [note] = [note for note in result.notes if "lacks VNNI" in note]
    assert "as layers share a weight" in note


@pytest.mark.parametrize("own_weights", [True, False])
def test_lstm_layers_in_branches_multiply_integers(tmp_path, own_weights):
    """Branches as exporters write them: with the same names of nodes and weights in each."""
    weights = {
        "w": weight(1, 4 * HIDDEN, 12) * 6,
        "r": weight(1, 4 * HIDDEN, HIDDEN) * 4,
    }
    branches = [
        onnx.helper.make_graph(
            [node("LSTM", f"{source} w r", f"out_{source}", hidden_size=HIDDEN)],
            source,
            [],
            [onnx.helper.make_tensor_value_info(f"out_{source}", TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(a, n) for n, a in weights.items() if own_weights],
        )
        for source in ("frames", "doubled")
    ]
    for branch in branches:
        branch.node[0].name = "lstm"
    nodes = [
        node("Add", "frames frames", "doubled"),
        node("ReduceSum", "frames", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        onnx.helper.make_node(
            "If", ["positive"], ["states"], then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    outer = {"zero": np.float32(0), **({} if own_weights else weights)}
    model = graph(nodes, outer, {"frames": [20, 1, 12]}, {"states": None}, opset=14)
    result = Optimized(model, tmp_path, {"frames": FRAMES})
    inner = [
        each.op_type
        for branch in next(n for n in result.graph.node if n.op_type == "If").attribute
        for each in branch.g.node
    ]
    assert inner == ["DynamicQuantizeLSTM"] * 2
    assert result.summary["products"] == 2
    before, after = result.sizes()
    assert after < (0.5 if own_weights else 0.7) * before
    assert 0 < result.summary["against_parent"]["states"]["relative_error"] < 0.3


def computed_in_branches(**attributes):
    """Return an If with an LSTM in each branch, whose weights are cut from larger ones there."""
    out, attributes = "states", {"hidden_size": HIDDEN, **attributes}
    branches = [
        onnx.helper.make_graph(
            [
                node("Slice", "w zero four rows", "w0"),
                node("Unsqueeze", "w0 zero", "w1"),
                node("Unsqueeze", "r zero", "r1"),
                node("LSTM", f"{source} w1 r1", f"{out}_{source}", **attributes),
            ],
            source,
            [],
            [onnx.helper.make_tensor_value_info(f"{out}_{source}", TensorProto.FLOAT, None)],
        )
        for source in ("frames", "doubled")
    ]
    nodes = [
        node("Add", "frames frames", "doubled"),
        node("ReduceSum", "frames", "total", keepdims=0),
        node("Greater", "total limit", "positive"),
        onnx.helper.make_node(
            "If", ["positive"], [out], then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    weights = {
        "w": weight(5 * HIDDEN, 12) * 6,
        "r": weight(4 * HIDDEN, HIDDEN) * 4,
        "zero": np.array([0]),
        "four": np.array([4 * HIDDEN]),
        "rows": np.array([0]),
        "limit": np.float32(0),
    }
    return graph(nodes, weights, {"frames": [20, 1, 12]}, {out: None}, opset=14)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.45), ("fp16", 0.65)])
def test_weights_that_branches_compute_from_constants_are_stored_once(tmp_path, precision, share):
    result = Optimized(computed_in_branches(), tmp_path, {"frames": FRAMES}, precision=precision)
    before, after = result.sizes()
    assert after < share * before
    assert 0 < result.summary["against_parent"]["states"]["relative_error"] < 0.3
    if precision == "int8":
        assert result.summary["products"] == 2
        stored = [t for t in result.graph.initializer if t.data_type == TensorProto.INT8]
        assert sum(len(t.dims) == 3 for t in stored) == 2


@pytest.mark.parametrize(
    ("fields", "attributes", "remedy"),
    [({"simplify": False}, {}, "leave out `simplify"), ({}, {"layout": 1}, "precision: fp16")],
)
def test_layers_that_cannot_be_stored_are_refused_by_the_plan(fields, attributes, remedy):
    contents = graph_contents(computed_in_branches(**attributes))
    config = OptimizeOnnxConfig.model_validate({"calibration": {"data": "x"}, **fields})
    [(problem, told)] = contents_problems(config, contents)
    assert "no convolution or matrix product" in problem
    assert remedy in told
