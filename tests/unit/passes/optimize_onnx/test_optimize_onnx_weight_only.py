"""INT8 weights with values in float: closer to the parent, as small, and without samples."""

import numpy as np
import pytest
from onnx import helper

from compressor.runtimes.onnxruntime.layers import OnnxLayers
from passes.optimize_onnx.config import OptimizeOnnxConfig
from tests.support.engines import node
from tests.support.foreign_graphs import (
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    optimized_operators,
    residual_network,
    weight,
)


def test_only_weights_are_rounded_and_the_result_is_closer(tmp_path_factory):
    rounded, plain = (
        Optimized(residual_network(), tmp_path_factory.mktemp("w"), {"image": IMAGES}, **fields)
        for fields in ({"weight_only": True}, {})
    )
    assert "QuantizeLinear" not in rounded.operators()
    assert rounded.summary["products"] == 4
    assert rounded.summary["corrected_biases"] == 4
    assert rounded.error() < 0.4 * plain.error()
    assert rounded.sizes()[1] <= plain.sizes()[1]


def test_weights_alone_need_no_samples(tmp_path):
    result = Optimized(
        feed_forward(), tmp_path, {"tokens": TOKENS}, calibration=None, weight_only=True
    )
    before, after = result.sizes()
    assert after < 0.4 * before
    assert result.error() < 0.01
    assert result.summary["corrected_biases"] == 0
    # ONNX Runtime multiplies the integers of matrices itself, and dequantizes no weight.
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert operators.count("MatMulNBits") == 2
    assert "MatMul" not in operators


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "tensorrt"}, "`weight_only` is for ONNX Runtime"),
        ({"smoothing": True}, "`smoothing` has no effect with `weight_only: true`"),
        (
            {"calibration": {"data": "c", "observer": "min-max"}},
            "`calibration.observer` has no effect with `weight_only: true`",
        ),
        ({"bias_correction": True}, "`bias_correction` requires samples"),
        ({"keep_float": {"data": "c", "max_drop": 0.1}}, "`keep_float` requires samples"),
        ({"precision": "int4"}, "`weight_only` has no effect with `precision: int4`"),
    ],
)
def test_fields_that_do_not_go_with_it_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizeOnnxConfig.model_validate({"weight_only": True} | fields)


@pytest.mark.parametrize("fields", [{"weight_only": True}, {"precision": "int4"}])
def test_layers_are_compared_without_samples_too(tmp_path, fields):
    result = Optimized(feed_forward(), tmp_path, {"tokens": TOKENS}, calibration=None, **fields)
    layers = [set(OnnxLayers(folder, 1).reads) for folder in (result.parent, result.out)]
    assert layers[0] == layers[1] == {"active", "features"}


def test_weights_that_stay_in_float_are_counted(tmp_path):
    nodes = [
        node("MatMul", "x w", "h"),
        node("Transpose", "h", "t", perm=[0, 2, 1]),
        node("MatMul", "h t", "scores"),  # has no weight
        helper.make_node("GRU", ["scores", "input", "recurrent"], ["", "y"], hidden_size=4),
    ]
    weights = {"w": weight(8, 4), "input": weight(1, 12, 5), "recurrent": weight(1, 12, 4)}
    model = graph(nodes, weights, {"x": ["T", 5, 8]}, {"y": None})
    samples = {"x": np.ones((6, 5, 8), np.float32)}
    result = Optimized(model, tmp_path, samples, calibration=None, weight_only=True)
    assert result.summary["float_operators"] == {"GRU": 1}
    assert "without an integer form, so with weights in float: 1 GRU" in result.notes
