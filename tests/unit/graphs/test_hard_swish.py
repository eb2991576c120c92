"""HardSwish in graphs of other tools: what is replaced, and what only looks like it."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from compressor.graphs.files import typed_model
from compressor.graphs.hard_swish import restore_hard_swish
from tests.support.engines import node
from tests.support.foreign_graphs import IMAGES, graph

X = 4 * IMAGES[0, 0]


def hard_swish(dtype=np.float32, six_shape=(), clip_domain=""):
    nodes = [
        node("Add", "x three", "shifted"),
        node("Clip", "shifted zero six", "clipped", domain=clip_domain),
        node("Mul", "x clipped", "product"),
        node("Div", "product divisor", "y"),
    ]
    weights = {name: dtype(value) for name, value in {"three": 3, "zero": 0, "six": 6}.items()}
    weights["divisor"] = np.full(six_shape, 6, dtype)
    opsets = [helper.make_opsetid("other", 1)]
    model = graph(nodes, weights, {"x": X.shape}, {"y": None}, opsets=opsets)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model


def restored(model):
    typed = typed_model(model)
    count = restore_hard_swish(typed)
    return count, ir.to_proto(typed)


def run(model, x):
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("six_shape", [(), (1,), (1, 1)])
def test_constants_of_up_to_the_rank_of_the_input_are_replaced(dtype, six_shape):
    model = hard_swish(dtype, six_shape)
    count, result = restored(model)
    assert count == 1
    onnx.checker.check_model(result, full_check=True)
    expected, actual = (run(each, X.astype(dtype)) for each in (model, result))
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, atol=0.005 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"six_shape": (1, 1, 1)},  # the output has an axis more than x
        {"dtype": np.float64},  # ONNX Runtime has no HardSigmoid in FP64
        {"clip_domain": "other"},
    ],
)
def test_what_only_looks_like_it_is_kept(fields):
    assert restored(hard_swish(**fields))[0] == 0


def test_a_constant_with_axes_beside_an_input_of_unknown_rank_is_kept():
    model = hard_swish(six_shape=(1,))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert restored(model)[0] == 0
