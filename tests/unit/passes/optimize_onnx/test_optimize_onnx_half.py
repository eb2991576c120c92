"""Graphs in FP16 are widened to FP32, and then quantized; inputs and outputs keep their types."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.graphs.files import load_typed_model
from compressor.graphs.saving import save_model
from compressor.graphs.widen import widen_halves
from tests.support.engines import node
from tests.support.foreign_graphs import (
    DRAW,
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    half,
    optimized_operators,
    residual_network,
    weight,
)

ROWS = DRAW.normal(size=(16, 32)).astype(np.float16)


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.04), ("int4", 0.15)])
def test_fp16_graphs_with_fp16_inputs_become_integers(tmp_path, precision, limit):
    images = {"image": IMAGES.astype(np.float16)}
    result = Optimized(half(residual_network()), tmp_path, images, precision=precision)
    ends = (*result.graph.input, *result.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT16}
    assert any("converted from FP16 to FP32, which is exact" in note for note in result.notes)
    assert result.error() < limit
    assert result.summary["against_parent"]["scores"]["relative_error"] < limit


def test_int8_of_an_fp16_graph_multiplies_integers_and_is_smaller(tmp_path):
    result = Optimized(half(feed_forward()), tmp_path, {"tokens": TOKENS})
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert operators.count("MatMulIntegerToFloat") == 2
    before, after = result.sizes()
    assert after < 0.75 * before
    assert result.error() < 0.04


def test_what_stays_in_float_is_stored_in_fp16(tmp_path):
    nodes = [
        node("ConvTranspose", "x k", "c"),
        node("GlobalAveragePool", "c", "pool"),
        node("Flatten", "pool", "flat"),
        node("MatMul", "flat w", "y"),
    ]
    weights = {"k": weight(3, 64, 5, 5), "w": weight(64, 32)}
    model = half(graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": ["N", 32]}))
    result = Optimized(model, tmp_path, {"x": IMAGES.astype(np.float16)}, precision="int4")
    before, after = result.sizes()
    assert after < before
    stored = [tensor for tensor in result.graph.initializer if list(tensor.dims) == [3, 64, 5, 5]]
    assert [tensor.data_type for tensor in stored] == [TensorProto.FLOAT16]
    assert "Cast" not in optimized_operators(result.out / "model.onnx", tmp_path)[:-1][1:]
    assert result.error() < 0.15


def test_fp16_graphs_with_fp32_inputs_become_integers(tmp_path_factory):
    samples = {"image": IMAGES}
    halved = Optimized(residual_network(), tmp_path_factory.mktemp("h"), samples, precision="fp16")
    model = onnx.load(halved.out / "model.onnx")
    result = Optimized(model, tmp_path_factory.mktemp("i"), samples)
    assert {value.type.tensor_type.elem_type for value in result.graph.input} == {1}
    assert result.error() < 0.04


def test_every_place_that_states_a_type_is_widened(tmp_path):
    then, other = (
        helper.make_graph(
            [node("Cast", source, f"o{source}", to=TensorProto.FLOAT16)],
            source,
            [],
            [helper.make_tensor_value_info(f"o{source}", TensorProto.FLOAT16, None)],
        )
        for source in ("a", "b")
    )
    nodes = [
        node("MatMul", "x w", "h"),
        node("Shape", "h", "sizes"),
        node("ConstantOfShape", "sizes", "ones", value=_tensor([1.0])),
        node("Add", "h ones", "a"),
        node("Constant", "", "two", value=_tensor(2.0)),
        node("Mul", "a two", "b"),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"w": weight(32, 8).astype(np.float16), "table": weight(4, 8).astype(np.float16)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": None, "table": [4, 8]})
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    half(model)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    onnx.save(model, tmp_path / "before" / "model.onnx")
    widened = load_typed_model(tmp_path / "before")
    assert widen_halves(widened)
    save_model(widened, tmp_path / "after", external=False)
    feeds = {"x": ROWS, "flag": np.array(True)}
    before, after = (
        onnxruntime.InferenceSession(tmp_path / name / "model.onnx").run(None, feeds)
        for name in ("before", "after")
    )
    for expected, actual in zip(before, after, strict=True):
        assert actual.dtype == np.float16
        np.testing.assert_allclose(actual, expected, rtol=3e-3, atol=3e-3)
    assert np.array_equal(before[1], after[1])
    assert not widen_halves(load_typed_model_of(residual_network(), tmp_path))


def load_typed_model_of(model, folder):
    onnx.save(model, folder / "model.onnx")
    return load_typed_model(folder)


def _tensor(value):
    return numpy_helper.from_array(np.array(value, np.float16))
