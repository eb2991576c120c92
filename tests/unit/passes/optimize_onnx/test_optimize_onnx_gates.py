"""Hard swish and hard sigmoids between integer products are computed on the integers."""

import numpy as np
import onnx
import pytest

from compressor.graphs.activation_limits import activation_limits
from compressor.graphs.files import load_typed_model
from tests.support.engines import node
from tests.support.foreign_graphs import (
    IMAGES,
    Optimized,
    graph,
    optimized_operators,
    weight,
)


def swish_network(alpha=1 / 6, beta=0.5, gate="HardSigmoid"):
    """Return two convolutions with x · gate(x) after each, as mobile networks have."""
    slopes = {"alpha": alpha, "beta": beta} if gate == "HardSigmoid" else {}
    nodes = [
        node("Conv", "x k1", "c1", pads=[1, 1, 1, 1]),
        node(gate, "c1", "g1", **slopes),
        node("Mul", "c1 g1", "s1"),
        node("Conv", "s1 k2", "c2"),
        node(gate, "c2", "g2", **slopes),
        node("Mul", "c2 g2", "s2"),
        node("Conv", "s2 k3", "y"),
    ]
    weights = {
        "k1": 4 * weight(16, 3, 3, 3),
        "k2": 4 * weight(16, 16, 1, 1),
        "k3": weight(4, 16, 1, 1),
    }
    return graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": None})


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.1, 0.3)])
def test_hard_swish_is_multiplied_on_integers(tmp_path, alpha, beta):
    result = Optimized(swish_network(alpha, beta), tmp_path, {"x": IMAGES})
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert "HardSigmoid" not in operators
    assert operators.count("QLinearMul") == 2
    assert operators.count("QLinearConv") == 3
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 1
    assert 0 < result.error() < 0.06


def test_a_gate_of_squeeze_and_excitation_needs_no_clip(tmp_path):
    nodes = [
        node("Conv", "x k1", "c"),
        node("HardSigmoid", "c", "g", alpha=1 / 6),
        node("Mul", "c g", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Conv", "p k2", "e"),
        node("HardSigmoid", "e", "scale", alpha=0.2),
        node("Mul", "s scale", "scaled"),
        node("Conv", "scaled k3", "y"),
    ]
    weights = {
        "k1": 4 * weight(16, 3, 1, 1),
        "k2": 9 * weight(16, 16, 1, 1),
        "k3": weight(4, 16, 1, 1),
    }
    model = graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": None})
    result = Optimized(model, tmp_path, {"x": IMAGES})
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert "HardSigmoid" not in operators
    assert operators.count("QLinearMul") == 2
    assert 0 < result.error() < 0.06


@pytest.mark.parametrize("change", ["output", "falls", "tensorrt"])
def test_other_gates_stay(tmp_path, change):
    model = swish_network(-0.2 if change == "falls" else 1 / 6)
    if change == "output":
        model.graph.output.extend(swish_network().graph.output)
        model.graph.output[1].name = "g1"
    fields = {"target": "tensorrt"} if change == "tensorrt" else {}
    result = Optimized(model, tmp_path, {"x": IMAGES}, **fields)
    assert "HardSigmoid" in result.operators()
    assert 0 < result.error() < 0.06


def test_values_that_a_gate_does_not_tell_apart_do_not_widen_the_grid(tmp_path_factory):
    """All values below −3 give 0 behind a hard swish: the grid ends there."""
    errors = {}
    for outlier in (0.0, -300.0):
        model = swish_network()
        k1 = (
            np.frombuffer(model.graph.initializer[0].raw_data, np.float32)
            .reshape(16, 3, 3, 3)
            .copy()
        )
        k1[0] = outlier / 27
        model.graph.initializer[0].raw_data = k1.tobytes()
        samples = {"x": np.abs(IMAGES)}
        errors[outlier] = Optimized(model, tmp_path_factory.mktemp("g"), samples).error()
    assert errors[-300.0] < 1.5 * errors[0.0]


@pytest.mark.parametrize(
    ("gate", "limits"),
    [("HardSigmoid", (-3.0, np.inf)), ("Sigmoid", (-10.0, np.inf))],
)
def test_limits_of_gated_values(tmp_path, gate, limits):
    onnx.save(swish_network(gate=gate), tmp_path / "model.onnx")
    model = load_typed_model(tmp_path)
    values = {value.name: value for each in model.graph for value in each.outputs}
    assert activation_limits(values["c1"]) == pytest.approx(limits)
    assert activation_limits(values["s1"]) == (-np.inf, np.inf)
    assert activation_limits(values["y"]) == (-np.inf, np.inf)


def test_the_operator_hard_swish_is_multiplied_on_integers_too(tmp_path):
    nodes = [node("Conv", "x k1", "c"), node("HardSwish", "c", "s"), node("Conv", "s k2", "y")]
    weights = {"k1": 4 * weight(16, 3, 3, 3), "k2": weight(4, 16, 1, 1)}
    model = graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": None}, opset=14)
    result = Optimized(model, tmp_path, {"x": IMAGES})
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert "HardSigmoid" not in operators
    assert operators.count("QLinearMul") == 1
    assert 0 < result.error() < 0.06
