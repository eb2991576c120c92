"""Lint of quantized graphs: rules of both targets, on graphs that break or keep them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import UsageError
from compressor.graphs.lint.problem import Rule
from compressor.graphs.lint.targets import lint, parse_target
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels


@dataclass(frozen=True)
class Product:
    """A model of one product with quantized operands."""

    operator: str = "MatMul"
    zero: Any = field(default_factory=lambda: np.int8(0))
    weight_zero: Any = field(default_factory=lambda: np.zeros(4, np.int8))
    weight: Any = field(default_factory=lambda: np.ones((4, 4), np.int8))
    scale: float = 0.1
    quantizes_result: bool = False
    quantizes_input: bool = True
    bias: type | None = None
    """float, int (dequantized) or None."""
    relu: bool = False
    extra: tuple[onnx.NodeProto, ...] = ()

    def constants(self):
        is_conv = self.operator == "Conv"
        arrays = {
            "s": np.float32(self.scale),
            "z": np.array(self.zero),
            "w": self.weight.reshape(4, 4, 1, 1) if is_conv else self.weight,
            "wz": self.weight_zero,
            "ws": np.full(4, 0.1, np.float32),
        }
        biases = {
            float: {"b": np.ones(4, np.float32)},
            int: {"b": np.ones(4, np.int32), "bs": np.float32(0.01)},
        }
        return arrays | biases.get(self.bias, {})

    def nodes(self):
        nodes, operands = [], ["x", "dw"]
        if self.quantizes_input:
            nodes += quantize_and_back("x", "q", "d", ("round", "back"))
            operands[0] = "d"
        axis = int(self.operator != "Conv")
        nodes.append(
            helper.make_node(
                "DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="weight", axis=axis
            )
        )
        if self.bias is int:
            nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["db"], name="bias"))
        operands += {float: ["b"], int: ["db"]}.get(self.bias, [])
        nodes.append(helper.make_node(self.operator, operands, ["y0"], name="product"))
        last = "y0"
        if self.relu:
            nodes.append(helper.make_node("Relu", [last], ["r"], name="relu"))
            last = "r"
        if self.quantizes_result:
            nodes += quantize_and_back(last, "q2", "d2", ("round2", "back2"))
            last = "d2"
        return [*nodes, helper.make_node("Identity", [last], ["y"]), *self.extra]

    def model(self):
        shape = [None, 4, 5, 5] if self.operator == "Conv" else [None, 4]
        graph = helper.make_graph(
            self.nodes(),
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.asarray(array), name)
                for name, array in self.constants().items()
            ],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def quantize_and_back(value, quantized, result, names):
    return [
        helper.make_node("QuantizeLinear", [value, "s", "z"], [quantized], name=names[0]),
        helper.make_node("DequantizeLinear", [quantized, "s", "z"], [result], name=names[1]),
    ]


def quantized_product(**fields):
    return Product(**fields).model()


def microsoft_node(operator):
    return (helper.make_node(operator, ["x"], ["unused"], name="foreign", domain="com.microsoft"),)


def lines(model, target):
    return [str(problem) for problem in lint(model, target)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"zero": np.int8(3)},
            ["QuantizeLinear round: a zero-point of 3", "DequantizeLinear back: a zero-point of 3"],
        ),
        ({"zero": np.uint8(0)}, ["QuantizeLinear round: UINT8", "DequantizeLinear back: UINT8"]),
        (
            {"weight": np.ones((4, 4), np.uint8), "weight_zero": np.zeros(4, np.uint8)},
            ["DequantizeLinear weight: UINT8"],
        ),
        (
            {"weight_zero": np.array([0, 0, -7, 0], np.int8)},
            ["DequantizeLinear weight: a zero-point of -7"],
        ),
        ({"operator": "Gemm", "bias": int}, ["DequantizeLinear bias: an INT32 bias"]),
        (
            {"scale": 0.0},
            [
                "QuantizeLinear round: a scale that is not",
                "DequantizeLinear back: a scale that is not",
            ],
        ),
        (
            {"extra": microsoft_node("MatMulNBits")},
            ["MatMulNBits foreign: an operator of com.microsoft"],
        ),
        (
            {
                "extra": (
                    helper.make_node(
                        "DynamicQuantizeLinear", ["x"], ["a", "b", "c"], name="dynamic"
                    ),
                )
            },
            ["DynamicQuantizeLinear dynamic: TensorRT computes"],
        ),
        ({}, []),
        ({"operator": "Conv", "quantizes_result": True, "relu": True}, []),
        ({"extra": microsoft_node("Gelu")}, []),
    ],
)
def test_nodes_that_tensorrt_refuses_are_named(fields, expected):
    problems = lines(quantized_product(**fields), "tensorrt")
    starts = [line[: len(start)] for line, start in zip(problems, expected, strict=True)]
    assert starts == expected


UNSIGNED = {"zero": np.uint8(0)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"quantizes_input": False}, []),
        (
            {"operator": "Conv", "quantizes_input": False, "quantizes_result": True},
            ["Conv product: its input is not dequantized"],
        ),
        ({"operator": "Gemm"}, []),
        (
            {"operator": "Gemm", "bias": float},
            [
                "Gemm product: its bias is float and its result is not quantized; "
                "write it as MatMul and Add"
            ],
        ),
        ({"operator": "Gemm", "bias": float, "quantizes_result": True}, []),
        ({"operator": "Conv"}, ["Conv product: its result is not quantized"]),
        ({"operator": "Conv", "quantizes_result": True}, []),
        (
            {"operator": "Conv", "quantizes_result": True, "relu": True},
            ["Conv product: its result is not quantized"],
        ),
        ({"operator": "Conv", "quantizes_result": True, "relu": True, **UNSIGNED}, []),
    ],
)
def test_the_linter_names_the_nodes_that_onnxruntime_computes_in_float(fields, expected, tmp_path):
    model = quantized_product(**fields)
    assert lines(model, "onnxruntime") == expected
    onnx.save(model, tmp_path / "model.onnx")
    kernels = inspect_kernels(tmp_path)
    assert bool(kernels.floating) == bool(expected)
    assert bool(kernels.integer) != bool(expected)


def test_a_float_weight_is_a_problem():
    model = quantized_product()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "float"))
    next(node for node in model.graph.node if node.name == "product").input[1] = "float"
    [problem] = lint(model, "onnxruntime")
    assert str(problem) == "MatMul product: a float weight"
    assert problem.rule is Rule.FLOAT_OPERATOR


@pytest.mark.parametrize(
    "dtype", [TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.UINT16]
)
def test_other_integer_types_are_handled(dtype):
    model = quantized_product(operator="Conv", quantizes_result=True, relu=True)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "z")
    zero.CopyFrom(helper.make_tensor("z", dtype, [], [0]))
    is_lowest = dtype in {TensorProto.UINT4, TensorProto.UINT16}
    assert lines(model, "onnxruntime") == (
        [] if is_lowest else ["Conv product: its result is not quantized"]
    )
    lint(model, "tensorrt")


def test_damaged_constants_and_incomplete_nodes_are_skipped():
    model = quantized_product()
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "s")
    scale.raw_data = b"abc"
    model.graph.node.append(helper.make_node("Conv", [], ["nothing"], name="empty"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x"], ["half"], name="half"))
    for target in ("onnxruntime", "tensorrt"):
        assert lint(model, target) == []


def test_subgraphs_are_linted():
    inner = quantized_product(operator="Conv").graph
    del inner.input[:]
    branch = helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "g", [], []))
    assert lines(model, "onnxruntime") == ["Conv product: its result is not quantized"] * 2


def test_an_unknown_target_is_refused_with_the_nearest_one():
    assert parse_target("tensorrt") == "tensorrt"
    with pytest.raises(UsageError, match="unknown lint target 'tensort'") as caught:
        parse_target("tensort")
    assert "tensorrt" in str(caught.value.remedy)
