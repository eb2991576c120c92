"""Padding before a rounded convolution becomes its own, where the convolution allows it."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from compressor.graphs.files import typed_model
from compressor.graphs.qdq import store_integer_weights
from tests.support.engines import node
from tests.support.foreign_graphs import IMAGES, graph, weight


@pytest.mark.parametrize(
    ("fields", "is_absorbed"),
    [
        ({}, True),
        ({"pads": [0, 1, 0, 1]}, True),
        ({"auto_pad": "NOTSET"}, True),
        ({"auto_pad": "VALID"}, True),
        ({"auto_pad": "SAME_UPPER"}, False),
    ],
)
def test_padding_before_a_convolution(fields, is_absorbed):
    nodes = [
        node("Pad", "x amounts", "padded"),
        node("QuantizeLinear", "padded scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "d"),
        node("Conv", "d k", "y", strides=[2, 2], **fields),
    ]
    weights = {
        "amounts": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scale": np.float32(0.03),
        "zero": np.uint8(128),
        "k": weight(4, 3, 3, 3),
    }
    model = graph(nodes, weights, {"x": [24, 3, 16, 16]}, {"y": None})
    typed = typed_model(model)
    store_integer_weights(typed, "onnxruntime", 8)
    result = ir.to_proto(typed)
    onnx.checker.check_model(result, full_check=True)
    assert ("Pad" not in {each.op_type for each in result.graph.node}) == is_absorbed
    expected, actual = (
        onnxruntime.InferenceSession(
            each.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, {"x": IMAGES})[0]
        for each in (model, result)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
