"""INT4 in blocks: the arithmetic, and what a graph with it computes."""

import numpy as np
import onnx
from onnxscript import ir

from compressor.graphs.int4_blocks import blocked, to_int4
from tests.unit.passes.tensorrt.engines import model_of, node, weight


def test_a_weight_on_the_grid_comes_back_exactly():
    integers = np.random.default_rng(0).integers(-7, 8, (64, 3))
    integers[::32] = 7  # each block reaches the end of its grid
    scales = np.array([[0.5, 0.25, 2.0], [1.0, 4.0, 0.125]], np.float32)
    found, found_scales = blocked((integers * scales.repeat(32, axis=0)).astype(np.float32), 32)
    np.testing.assert_array_equal(found, integers)
    np.testing.assert_array_equal(found_scales, scales)


def test_a_grid_that_is_cut_short_may_be_nearer():
    values = np.full((32, 1), 0.9, np.float32)
    values[0] = 1.0
    integers, scales = blocked(values, 32)
    plain = np.rint(values * 7) / 7
    assert ((integers * scales - values) ** 2).sum() < ((plain - values) ** 2).sum()


def test_a_block_of_zeros_has_a_scale():
    integers, scales = blocked(np.zeros((32, 2), np.float32), 16)
    assert not integers.any()
    assert (scales == 1).all()


def test_products_of_either_layout_and_weights_that_are_left():
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
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert to_int4(model, 16) == (3, [])
    assert "shared" in model.graph.initializers  # it is added too
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert to_int4(model, 32) == (2, ["b"])


def test_what_is_stored_is_what_is_computed():
    proto = model_of(
        [node("Gemm", "x w", "logits", transB=1)], {"w": weight(4, 32)}, (2, 32), opset=21
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    to_int4(model, 16)
    x = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    found = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    integers, scales = blocked(onnx.numpy_helper.to_array(proto.graph.initializer[0]).T, 16)
    np.testing.assert_allclose(
        found, x @ (integers * scales.repeat(16, axis=0)), rtol=1e-5, atol=1e-5
    )
