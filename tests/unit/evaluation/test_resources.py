"""Tests of costs of graphs small enough to count by hand, of peak memory, and of load."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.evaluation.resources import (
    BackgroundLoad,
    cost_metrics,
    peak_rss_bytes,
    reset_peak_rss,
)
from compressor.graphs.signature import initializer_rows
from compressor.runtimes.formats import StoredModel, format_named
from compressor.runtimes.onnxruntime import cost as onnx_cost


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


def model(nodes, inputs, weights):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(nodes, "g", values, [out], weights),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def test_parameters_and_macs_of_convolution_and_products():
    graph = model(
        [
            helper.make_node(
                "Conv", ["x", "kernel"], ["features"], strides=[2, 2], pads=[1, 1, 1, 1], group=2
            ),
            helper.make_node("Shape", ["features"], ["shape"], end=1),
            helper.make_node("Concat", ["shape", "rest"], ["flat_shape"], axis=0),
            helper.make_node("Reshape", ["features", "flat_shape"], ["flat"]),
            helper.make_node("Gemm", ["flat", "dense"], ["hidden"], transB=1),
            helper.make_node("MatMul", ["hidden", "last"], ["out"]),
        ],
        {"x": ["batch", 4, 8, 8]},
        [
            weight("kernel", 6, 2, 3, 3),
            numpy_helper.from_array(np.array([96]), "rest"),
            weight("dense", 5, 96),
            weight("last", 5, 3, dtype=np.int8),
        ],
    )
    assert onnx_cost.count_parameters(graph) == 108 + 480 + 15
    macs = 6 * 16 * 18 + 96 * 5 + 5 * 3
    assert onnx_cost.count_macs(graph, {"x": (1, 4, 8, 8)}) == macs
    graph.graph.input[0].type.tensor_type.ClearField("shape")
    assert onnx_cost.count_macs(graph, {"x": (1, 4, 8, 8)}) == macs


def test_shapes_that_depend_on_data_are_computed_from_a_sample():
    graph = model(
        [
            helper.make_node("NonZero", ["x"], ["places"]),
            helper.make_node("Shape", ["places"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["ones"]),
            helper.make_node("Transpose", ["ones"], ["turned"]),
            helper.make_node("MatMul", ["turned", "ones"], ["out"]),
        ],
        {"x": ["batch", 4]},
        [],
    )
    assert onnx_cost.count_macs(graph, {"x": (1, 4)}) == 0
    assert onnx_cost.count_macs(graph, {}) is None


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_count_their_weights_for_every_token(kind, gates):
    graph = model(
        [helper.make_node(kind, ["x", "w", "r"], ["", "out"], hidden_size=5, direction="reverse")],
        {"x": ["length", "batch", 4]},
        [weight("w", 1, gates * 5, 4), weight("r", 1, gates * 5, 5)],
    )
    assert onnx_cost.count_macs(graph, {"x": (7, 2, 4)}) == 7 * 2 * gates * 5 * (4 + 5)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MatMul", ["x", "x"], ["out"]),
        helper.make_node("MatMulNBits", ["x", "w"], ["out"], domain="com.microsoft"),
        helper.make_node("Einsum", ["x"], ["out"], equation="ij->ji"),
    ],
)
def test_macs_are_none_where_shapes_are_unknown(node):
    shape = {"x": ["unknown", "unknown"]} if node.op_type == "MatMul" else {"x": [2, 2]}
    assert onnx_cost.count_macs(model([node], shape, []), {}) is None


def test_torch_models_use_the_familys_arithmetic(tiny_model):
    metrics = {
        metric.name: metric.value
        for metric in cost_metrics(StoredModel(format_named("torch"), tiny_model), {})
    }
    size = sum(path.stat().st_size for path in tiny_model.iterdir())
    assert metrics == {"size_bytes": size, "parameters": 288, "macs": 3480}


def test_other_formats_have_only_a_size(tiny_model):
    assert [
        metric.name for metric in cost_metrics(StoredModel(format_named("adapter"), tiny_model), {})
    ] == ["size_bytes"]


def test_the_peak_restarts_at_a_reset():
    ballast = np.ones(8_000_000)
    before = peak_rss_bytes()
    del ballast
    if not reset_peak_rss():
        pytest.skip("this kernel does not let a process reset its peak")
    assert peak_rss_bytes() < before - 50_000_000


def test_background_load_excludes_this_process(monkeypatch, tmp_path):
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr("compressor.evaluation.resources._STAT", stat)
    clocks = {"wall": 10.0, "own": 1.0}
    monkeypatch.setattr(
        "compressor.evaluation.resources.time",
        SimpleNamespace(perf_counter=lambda: clocks["wall"], process_time=lambda: clocks["own"]),
    )
    stat.write_text(f"cpu  {5 * ticks} 0 {2 * ticks} 900 0 0 0 0 0 0\n")
    load = BackgroundLoad()
    assert load.cores() is None
    clocks |= {"wall": 12.0, "own": 2.5}
    stat.write_text(f"cpu  {6 * ticks} {ticks} {3 * ticks} 999 0 0 0 0 0 0\n")
    assert load.cores() == pytest.approx((3 - 1.5) / 2)


def test_weights_in_constant_nodes_are_counted():
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    index = numpy_helper.from_array(np.ones(5, np.int64), "i")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Constant", [], ["i"], value=index),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 4), ("y", 3))
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]))
    assert onnx_cost.count_parameters(model) == 12
    assert initializer_rows(model) == [("w", "float32", (4, 3)), ("i", "int64", (5,))]
