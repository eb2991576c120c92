"""Shares of integers, and reasons, from the profile of a graph that ONNX Runtime makes integers of, and of profiles made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.runtimes.onnxruntime.low_precision import (
    low_precision_macs,
    low_precision_weights,
    slowdown_reasons,
)
from compressor.runtimes.onnxruntime.profile import NodeProfile, profile

IN, OUT, ROWS = 32, 64, 16


def quantized_and_float(folder: Path) -> Path:
    """Two products with weights: the first between roundings, the second left in float; then one of two activations."""
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
    assert low_precision_weights(nodes) == pytest.approx(IN / (IN + OUT))
    macs = np.array([ROWS * OUT * IN, ROWS * OUT * OUT, ROWS * ROWS * OUT])
    assert low_precision_macs(nodes) == pytest.approx(macs[0] / macs.sum())
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
    return NodeProfile(operator=operator, milliseconds=milliseconds, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [node(9), node(1, integer=True)],
            "90% of the time: 1 operators with weights are left in float (MatMul n)",
        ),
        (
            [node(5, weights=0), node(5, integer=True)],
            "50% of the time: products of two activations are in float",
        ),
        (
            [node(3, "QuantizeLinear", macs=0), node(7, integer=True)],
            "30% of the time: 1 roundings",
        ),
        (
            [node(4, "Softmax", macs=0), node(6, integer=True)],
            "40% of the time: operators that multiply nothing",
        ),
        ([node(10, integer=True, macs=100, bytes=1000)], "100% of the time: memory-bound"),
        ([node(0.001, integer=True)], "shapes too small"),
    ],
)
def test_reasons(nodes: list[NodeProfile], reason: str) -> None:
    found = slowdown_reasons(nodes)
    assert len(found) == 1
    assert found[0].startswith(reason)


def test_a_graph_that_multiplies_nothing() -> None:
    assert low_precision_weights([]) is None
    assert low_precision_macs([node(1, "Add", macs=0, weights=0)]) is None
