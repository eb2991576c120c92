"""Simplification of graphs: forms that ONNX Runtime fuses, and optimizations that are skipped."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from compressor.graphs.saving import save_checked_model
from compressor.graphs.simplify import replace_reciprocals, simplify
from compressor.models.capabilities.signature import InputSpec
from passes.export_onnx.tracing import onnx_from_torch


def test_a_product_with_a_bias_stays_two_operators_where_sizes_vary():
    shapes = {"x": ["batch", "length", 4], "y": ["batch", "length", 3]}
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    constants = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
                onnx.helper.make_node("Add", ["z", "b"], ["y"]),
            ],
            "linear",
            [x],
            [y],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    result = simplify(ir.from_proto(model))
    assert result.applied
    assert [node.op_type for node in result.model.graph] == ["MatMul", "Add"]


class Normed(torch.nn.Module):
    """An RMS norm with weights; weights of one would be dropped."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.RMSNorm(16, eps=1e-5)
        torch.nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        return {"logits": self.norm(x)}


def test_onnxruntime_fuses_an_rms_norm_into_one_operator(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3, 16)).astype(np.float32)
    module = Normed()
    inputs = [InputSpec("x", "float32", ("batch", 3, 16))]
    model = simplify(onnx_from_torch(module, inputs, ["logits"], {"x": x}, 20)).model
    replace_reciprocals(model)
    save_checked_model(model, tmp_path, {}, 1 << 30)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators == ["SimplifiedLayerNormalization"]
    expected = module(torch.from_numpy(x))["logits"].detach().numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


def graph_with_range(limit):
    """Return a graph that adds the sum of a Range of constants to its input."""
    numbers = {"start": 0, "limit": limit, "delta": 1}
    initializers = [onnx.numpy_helper.from_array(np.int64(v), n) for n, v in numbers.items()]
    nodes = [
        onnx.helper.make_node("Range", [*numbers], ["range"]),
        onnx.helper.make_node("ReduceMax", ["range"], ["largest"], keepdims=0),
        onnx.helper.make_node("Add", ["x", "largest"], ["y"]),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n"]) for name in "xy"
    )
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], initializers)
    opsets = [onnx.helper.make_opsetid("", 18)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9))


def test_a_constant_that_would_take_all_memory_is_not_computed():
    small = simplify(graph_with_range(100))
    assert small.applied
    assert [node.op_type for node in small.model.graph] == ["Add"]
    large = simplify(graph_with_range(2**40))
    assert not large.applied
    assert "it computes a constant of 8,796.1 GB" in large.summary
