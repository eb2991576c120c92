"""Products with packed weights in a traced graph become MatMulNBits that compute the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.graphs.packed_products import store_packed_products
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid

X = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)


def layer(outputs, bits=4, symmetric=False, group_size=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    grid = WeightGrid(bits=bits, group_size=group_size, symmetric=symmetric)
    groups = 32 // grid.width(32)
    zeros = torch.randint(0, 2**bits, (outputs, groups), generator=random)
    return PackedLinear(
        torch.randint(0, 2**bits, (outputs, 32), generator=random).to(torch.uint8),
        (torch.rand(outputs, groups, generator=random) + 0.5).half(),
        torch.full_like(zeros, grid.middle).byte() if symmetric else zeros.byte(),
        grid,
    )


def product(operator, rows_OI, bias=None):
    """Return a graph of one product with the weight ``rows_OI``."""
    weight = rows_OI if operator == "Gemm" else np.ascontiguousarray(rows_OI.T)
    constants = [numpy_helper.from_array(weight, "w")]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "b"))
    names = ["x", *(constant.name for constant in constants)]
    fields = {"transB": 1} if operator == "Gemm" else {}
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **fields)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, len(rows_OI)])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": X})[0]


def store(model, layers):
    graph = ir.from_proto(model)
    stored = store_packed_products(graph, lambda widths: layers.items() if 32 in widths else ())
    return stored, ir.to_proto(graph)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize(
    "fields", [{}, {"bits": 8, "group_size": -1}, {"bits": 2}, {"symmetric": True}]
)
def test_a_product_has_the_integers_of_its_layer(operator, fields):
    packed = layer(24, **fields)
    bias = np.arange(24, dtype=np.float32) if operator == "Gemm" else None
    model = product(operator, packed.dequantize().numpy(), bias)
    stored, result = store(model, {"other": layer(24, seed=1), "mlp.up": packed})
    assert stored == ["mlp.up"]
    assert [node.op_type for node in result.graph.node] == ["Cast", "MatMulNBits"]
    assert "w" not in {constant.name for constant in result.graph.initializer}
    onnx.checker.check_model(result)
    assert np.allclose(run(result), run(model), rtol=1e-4, atol=1e-3)


def test_joined_layers_are_one_product_and_others_stay():
    query, key = layer(16), layer(8, seed=1)
    rows = np.concatenate([query.dequantize().numpy(), key.dequantize().numpy()])
    model = product("MatMul", rows)
    stored, result = store(model, {"k": key, "q": query})
    assert stored == ["k", "q"]
    assert np.allclose(run(result), run(model), rtol=1e-4, atol=1e-3)
    stored, result = store(model, {"q": query})
    assert not stored
    assert [node.op_type for node in result.graph.node] == ["MatMul"]


def test_bits_that_the_operator_lacks_stay_floats():
    packed = layer(24, bits=3)
    stored, _ = store(product("MatMul", packed.dequantize().numpy()), {"up": packed})
    assert not stored
