"""Every rule by a graph that breaks it, beside one that keeps them all."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.graphs.lint.targets import lint
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels

ZERO, ZEROS, WEIGHT = np.int8(0), np.zeros(4, np.int8), np.ones((4, 4), np.int8)


def graph(
    *,
    operator="MatMul",
    zero=ZERO,
    weight_zero=ZEROS,
    weight=WEIGHT,
    scale=0.1,
    rounds_result=False,
    rounds_input=True,
    bias=None,
    relu=False,
    extra=(),
):
    nodes, constants = (
        [],
        {"s": np.float32(scale), "z": np.array(zero), "w": weight, "wz": weight_zero},
    )
    constants["ws"] = np.full(4, 0.1, np.float32)
    shape = [None, 4]
    if operator == "Conv":
        constants["w"], shape = weight.reshape(4, 4, 1, 1), [None, 4, 5, 5]
    x = "x"
    if rounds_input:
        nodes += [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round")]
        nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="back")]
        x = "d"
    nodes += [
        helper.make_node(
            "DequantizeLinear",
            ["w", "ws", "wz"],
            ["dw"],
            name="weight",
            axis=int(operator != "Conv"),
        )
    ]
    operands = [x, "dw"]
    if bias is float:
        constants["b"] = np.ones(4, np.float32)
        operands.append("b")
    elif bias is int:
        constants |= {"b": np.ones(4, np.int32), "bs": np.float32(0.01)}
        nodes += [helper.make_node("DequantizeLinear", ["b", "bs"], ["db"], name="bias")]
        operands.append("db")
    nodes += [helper.make_node(operator, operands, ["y0"], name="product")]
    last = "y0"
    if relu:
        nodes += [helper.make_node("Relu", [last], ["r"], name="relu")]
        last = "r"
    if rounds_result:
        nodes += [helper.make_node("QuantizeLinear", [last, "s", "z"], ["q2"], name="round2")]
        nodes += [helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["d2"], name="back2")]
        last = "d2"
    nodes += [helper.make_node("Identity", [last], ["y"]), *extra]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def foreign(operator):
    return (helper.make_node(operator, ["x"], ["unused"], name="foreign", domain="com.microsoft"),)


@pytest.mark.parametrize(
    ("fields", "told"),
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
        ({"extra": foreign("MatMulNBits")}, ["MatMulNBits foreign: an operator of com.microsoft"]),
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
        ({"operator": "Conv", "rounds_result": True, "relu": True}, []),
        ({"extra": foreign("Gelu")}, []),
    ],
)
def test_what_tensorrt_refuses(fields, told):
    found = lint(graph(**fields), "tensorrt")
    assert [line[: len(start)] for line, start in zip(found, told, strict=True)] == told


UNSIGNED = {"zero": np.uint8(0)}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, []),
        ({"rounds_input": False}, []),
        (
            {"operator": "Conv", "rounds_input": False, "rounds_result": True},
            ["Conv product: its input is not dequantized"],
        ),
        ({"operator": "Gemm"}, []),
        (
            {"operator": "Gemm", "bias": float},
            [
                "Gemm product: its bias is float and its result is not quantized; write it as MatMul and Add"
            ],
        ),
        ({"operator": "Gemm", "bias": float, "rounds_result": True}, []),
        ({"operator": "Conv"}, ["Conv product: its result is not quantized"]),
        ({"operator": "Conv", "rounds_result": True}, []),
        (
            {"operator": "Conv", "rounds_result": True, "relu": True},
            ["Conv product: its result is not quantized"],
        ),
        ({"operator": "Conv", "rounds_result": True, "relu": True, **UNSIGNED}, []),
    ],
)
def test_what_onnxruntime_leaves_in_float_is_what_the_linter_says(fields, told, tmp_path):
    model = graph(**fields)
    assert lint(model, "onnxruntime") == told
    onnx.save(model, tmp_path / "model.onnx")
    found = inspect_kernels(tmp_path)
    assert bool(found.floating) == bool(told)
    assert bool(found.integer) != bool(told)


def test_a_float_weight_is_told():
    model = graph()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "float"))
    next(node for node in model.graph.node if node.name == "product").input[1] = "float"
    assert lint(model, "onnxruntime") == ["MatMul product: a float weight"]


@pytest.mark.parametrize(
    "kind", [TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.UINT16]
)
def test_other_integers_are_looked_at_without_a_stumble(kind):
    model = graph(operator="Conv", rounds_result=True, relu=True)
    zero = next(one for one in model.graph.initializer if one.name == "z")
    zero.CopyFrom(helper.make_tensor("z", kind, [], [0]))
    starts_at_zero = kind in {TensorProto.UINT4, TensorProto.UINT16}
    assert lint(model, "onnxruntime") == (
        [] if starts_at_zero else ["Conv product: its result is not quantized"]
    )
    lint(model, "tensorrt")


def test_what_is_damaged_is_passed_over():
    model = graph()
    scale = next(one for one in model.graph.initializer if one.name == "s")
    scale.raw_data = b"abc"
    model.graph.node.append(helper.make_node("Conv", [], ["nothing"], name="empty"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x"], ["half"], name="half"))
    for target in ("onnxruntime", "tensorrt"):
        assert lint(model, target) == []


def test_graphs_within_are_looked_at():
    inner = graph(operator="Conv").graph
    del inner.input[:]
    branch = helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "g", [], []))
    assert lint(model, "onnxruntime") == ["Conv product: its result is not quantized"] * 2
