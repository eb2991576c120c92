"""Parameters and MACs of graphs small enough to count by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.evaluation.cost import cost_metrics
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


def test_convolution_reshape_and_products():
    graph = model(
        [
            helper.make_node(
                "Conv", ["x", "kernel"], ["seen"], strides=[2, 2], pads=[1, 1, 1, 1], group=2
            ),
            helper.make_node("Shape", ["seen"], ["shape"], end=1),
            helper.make_node("Concat", ["shape", "rest"], ["flat_shape"], axis=0),
            helper.make_node("Reshape", ["seen", "flat_shape"], ["flat"]),
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
    assert onnx_cost.count_macs(graph, {"x": (1, 4, 8, 8)}) == 6 * 16 * 18 + 96 * 5 + 5 * 3


def test_shapes_that_only_a_run_can_tell():
    graph = model(
        [
            helper.make_node("NonZero", ["x"], ["places"]),
            helper.make_node("Shape", ["places"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["found"]),
            helper.make_node("Transpose", ["found"], ["turned"]),
            helper.make_node("MatMul", ["turned", "found"], ["out"]),
        ],
        {"x": ["batch", 4]},
        [],
    )
    assert onnx_cost.count_macs(graph, {"x": (1, 4)}) == 0
    assert onnx_cost.count_macs(graph, {}) is None


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MatMul", ["x", "x"], ["out"]),
        helper.make_node("MatMulNBits", ["x", "w"], ["out"], domain="com.microsoft"),
        helper.make_node("Einsum", ["x"], ["out"], equation="ij->ji"),
    ],
)
def test_what_cannot_be_told_is_none(node):
    shape = {"x": ["unknown", "unknown"]} if node.op_type == "MatMul" else {"x": [2, 2]}
    assert onnx_cost.count_macs(model([node], shape, []), {}) is None


def test_the_familys_own_arithmetic_for_torch(tiny_model):
    metrics = {
        metric.name: metric.value
        for metric in cost_metrics(StoredModel(format_named("torch"), tiny_model), {})
    }
    size = sum(path.stat().st_size for path in tiny_model.iterdir())
    assert metrics == {"size_bytes": size, "parameters": 288, "macs": 3480}


def test_other_kinds_have_a_size(tiny_model):
    assert [
        metric.name for metric in cost_metrics(StoredModel(format_named("adapter"), tiny_model), {})
    ] == ["size_bytes"]
