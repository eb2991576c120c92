"""Shares of integer arithmetic and reasons for slowness, from real and from invented profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.runtimes.onnxruntime.low_precision import (
    integer_mac_share,
    integer_weight_share,
    slowdown_reasons,
)
from compressor.runtimes.onnxruntime.profile import NodeProfile, profile

IN, OUT, ROWS = 32, 64, 16


def quantized_and_float(folder: Path) -> Path:
    """Write a graph of three products: a quantized weight, a float weight, and two activations."""
    draw = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "wscale": np.full(OUT, 0.01, np.float32),
        "wzero": np.zeros(OUT, np.int8),
        "w1": draw.integers(-90, 90, (IN, OUT)).astype(np.int8),
        "w2": draw.normal(size=(OUT, OUT)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w1", "wscale", "wzero"], ["dw"], axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["y"], "first"),
        helper.make_node("MatMul", ["y", "w2"], ["z"], "second"),
        helper.make_node("Transpose", ["z"], ["zt"], perm=[1, 0]),
        helper.make_node("MatMul", ["z", "zt"], ["out"], "third"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, IN])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [ROWS, ROWS])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / "model.onnx",
    )
    return folder


def test_shares_are_read_from_the_optimized_graph(tmp_path: Path) -> None:
    batch = {"x": np.ones((ROWS, IN), np.float32)}
    nodes = profile(quantized_and_float(tmp_path), batch, threads=1, runs=3)
    assert integer_weight_share(nodes) == pytest.approx(IN / (IN + OUT))
    macs = np.array([ROWS * OUT * IN, ROWS * OUT * OUT, ROWS * ROWS * OUT])
    assert integer_mac_share(nodes) == pytest.approx(macs[0] / macs.sum())
    assert all(node.milliseconds >= 0 for node in nodes)
    assert any("take less than 20 µs" in line for line in slowdown_reasons(nodes))


def node(milliseconds: float, operator: str = "MatMul", **changes: object) -> NodeProfile:
    values = {
        "name": "n",
        "integer": False,
        "macs": 10**9,
        "weights": 1000,
        "bytes": 1000,
        **changes,
    }
    return NodeProfile(operator=operator, milliseconds=milliseconds, **values)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [node(9), node(1, integer=True)],
            "90% of the time: 1 operators with weights compute in float (MatMul n)",
        ),
        (
            [node(5, weights=0), node(5, integer=True)],
            "50% of the time: products of two activations compute in float",
        ),
        (
            [node(3, "QuantizeLinear", macs=0), node(7, integer=True)],
            "30% of the time: 1 conversions",
        ),
        (
            [node(4, "Softmax", macs=0), node(6, integer=True)],
            "40% of the time: operators without products",
        ),
        ([node(10, integer=True, macs=100, bytes=1000)], "100% of the time: memory-bound"),
        ([node(0.001, integer=True)], "shapes too small"),
    ],
)
def test_each_reason_is_reported_with_its_share_of_the_time(
    nodes: list[NodeProfile], reason: str
) -> None:
    [reported] = slowdown_reasons(nodes)
    assert reported.startswith(reason)


def test_a_graph_without_products_has_no_shares() -> None:
    assert integer_weight_share([]) is None
    assert integer_mac_share([node(1, "Add", macs=0, weights=0)]) is None
