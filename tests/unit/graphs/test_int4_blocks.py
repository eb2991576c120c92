"""Weights as INT4 in blocks: the rounding, and the graphs that hold them."""

import numpy as np
import onnx
import onnx_ir as ir

from compressor.graphs.blocks import quantize_blocks, store_int4_weights
from tests.support.engines import model_of, node, weight


def typed(model):
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_a_weight_on_the_grid_is_represented_exactly():
    integers = np.random.default_rng(0).integers(-7, 8, (64, 3))
    integers[::32] = 7  # each block reaches the end of its grid
    scales = np.array([[0.5, 0.25, 2.0], [1.0, 4.0, 0.125]], np.float32)
    values = (integers * scales.repeat(32, axis=0)).astype(np.float32)
    stored_integers, stored_scales = quantize_blocks(values, 32)
    np.testing.assert_array_equal(stored_integers, integers)
    np.testing.assert_array_equal(stored_scales, scales)


def test_clipping_reduces_the_squared_error_where_one_value_stands_out():
    values = np.full((32, 1), 0.9, np.float32)
    values[0] = 1.0
    integers, scales = quantize_blocks(values, 32)
    unclipped = np.rint(values * 7) / 7
    assert ((integers * scales - values) ** 2).sum() < ((unclipped - values) ** 2).sum()


def test_a_block_of_zeros_has_a_scale_of_one():
    integers, scales = quantize_blocks(np.zeros((32, 2), np.float32), 16)
    assert not integers.any()
    assert (scales == 1).all()


def test_weights_of_products_in_either_layout_are_stored_and_others_are_left():
    nodes = [
        node("MatMul", "x a", "y"),
        node("Gemm", "y b", "z", transB=1),
        node("MatMul", "z odd", "u"),
        node("Add", "u shared", "v"),
        node("MatMul", "v shared", "logits"),
    ]
    weights = {
        "a": weight(32, 48),
        "b": weight(32, 48),
        "odd": weight(32, 20),
        "shared": weight(20, 20),
    }
    proto = model_of(nodes, weights | {"odd": weight(32, 20)}, (20, 32), opset=21)
    model = typed(proto)
    assert store_int4_weights(model, 16) == (3, [])
    assert "shared" in model.graph.initializers  # an Add reads it too
    assert store_int4_weights(typed(proto), 32) == (2, ["b"])


def test_the_graph_computes_with_the_rounded_weights():
    proto = model_of(
        [node("Gemm", "x w", "logits", transB=1)], {"w": weight(4, 32)}, (2, 32), opset=21
    )
    model = typed(proto)
    store_int4_weights(model, 16)
    x = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    result = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    integers, scales = quantize_blocks(onnx.numpy_helper.to_array(proto.graph.initializer[0]).T, 16)
    expected = x @ (integers * scales.repeat(16, axis=0))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
