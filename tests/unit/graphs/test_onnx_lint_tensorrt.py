"""Every rule by a graph that breaks it and that tensorrt-rtx refuses, beside those that it takes."""

import numpy as np
import pytest
from onnx import TensorProto as T

from compressor.graphs.lint.targets import lint
from tests.unit.runtimes.tensorrt_graphs import (
    B,
    D,
    F,
    H,
    dequantized,
    graph,
    node,
    product,
    refusal,
    rounded,
)

TAKEN = {
    "fp32": (product(F), "sm86"),
    "fp16": (product(H), "sm75"),
    "bf16": (product(B), "sm80"),
    "fp64": (product(D), "sm86"),
    "int8": (dequantized(T.INT8), "sm86"),
    "int8 and fp16 on the oldest": (dequantized(T.INT8, H), "sm75"),
    "int8 with a zero-point of 0": (dequantized(T.INT8, zero=0), "sm86"),
    "int4 by column": (dequantized(T.INT4), "sm80"),
    "int4 by block": (dequantized(T.INT4, H, shape=(64, 4), axis=0, block_size=32), "sm86"),
    "fp8": (dequantized(T.FLOAT8E4M3FN, H), "sm89"),
    "rounded activations": (rounded(np.int8(0)), "sm86"),
    "fp32 without a product on the oldest": (graph([node("Relu", "x")]), "sm75"),
    "types that are cast": (
        graph(
            [node("Cast", "x", "h", "cast", to=H), node("MatMul", "h w")],
            {"w": np.ones((4, 4), np.float16)},
            out=H,
        ),
        "sm86",
    ),
    "gelu": (graph([node("Gelu", "x", domain="com.microsoft")]), "sm86"),
    "bytes that are cast": (graph([node("Cast", "x", to=F)], kind=T.UINT8, out=F), "sm86"),
}
REFUSED = {
    "zero-point": (
        rounded(np.int8(3)),
        "sm86",
        ["QuantizeLinear round: a zero-point of 3", "DequantizeLinear back: a zero-point of 3"],
    ),
    "weight's zero-point": (
        dequantized(T.INT8, zero=-7),
        "sm86",
        ["DequantizeLinear weight: a zero-point of -7"],
    ),
    "int4 zero-point": (
        dequantized(T.INT4, zero=1),
        "sm86",
        ["DequantizeLinear weight: a zero-point of 1"],
    ),
    "uint8 weight": (dequantized(T.UINT8), "sm86", ["DequantizeLinear weight: UINT8 integers"]),
    "uint4": (dequantized(T.UINT4), "sm86", ["DequantizeLinear weight: UINT4 integers"]),
    "int16": (dequantized(T.INT16), "sm86", ["DequantizeLinear weight: INT16 values"]),
    "e5m2": (dequantized(T.FLOAT8E5M2), "sm89", ["DequantizeLinear weight: FLOAT8E5M2 values"]),
    "scale": (
        rounded(np.int8(0), 0.0),
        "sm86",
        ["QuantizeLinear round: a scale that", "DequantizeLinear back: a scale that"],
    ),
    "int32 bias": (
        graph(
            [node("DequantizeLinear", "b s", "d", "bias"), node("Add", "x d")],
            {"b": np.ones(4, np.int32), "s": np.float32(0.1)},
        ),
        "sm86",
        ["DequantizeLinear bias: an INT32 bias"],
    ),
    "MatMulNBits": (
        graph(
            [
                node(
                    "MatMulNBits", "x w s", K=32, N=4, bits=4, block_size=32, domain="com.microsoft"
                )
            ],
            {"w": np.zeros((4, 1, 16), np.uint8), "s": np.ones(4, np.float32)},
            shape=("n", 32),
        ),
        "sm86",
        ["MatMulNBits one: an operator of com.microsoft"],
    ),
    "integers of ONNX Runtime": (
        graph(
            [node("MatMulInteger", "x w", "i"), node("Cast", "i", name="cast", to=F)],
            {"w": np.ones((4, 4), np.int8)},
            T.INT8,
            F,
        ),
        "sm86",
        ["MatMulInteger one: TensorRT computes QuantizeLinear"],
    ),
    "mixed product": (product(F, H), "sm86", ["MatMul one: mixes FP32 (x) and FP16 (w)"]),
    "mixed sum": (
        graph([node("Add", "x w")], {"w": np.ones(4, np.float16)}),
        "sm86",
        ["Add one: mixes FP32 (x) and FP16 (w)"],
    ),
    "mixed further in": (
        graph(
            [
                node("Cast", "x", "h", "cast", to=H),
                node("Relu", "h", "r", "relu"),
                node("Mul", "r w"),
            ],
            {"w": np.ones(4, np.float32)},
        ),
        "sm86",
        ["Mul one: mixes FP16 (r) and FP32 (w)"],
    ),
    "input": (
        graph([node("Cast", "x", to=F)], kind=T.UINT16, out=F),
        "sm86",
        ["input x: UINT16 is no type"],
    ),
    "fp32 on sm75": (product(F), "sm75", ["MatMul one: FP32 products have no kernels on sm75"]),
    "int4 on sm75": (
        dequantized(T.INT4, H),
        "sm75",
        ["DequantizeLinear weight: INT4 has no kernels on sm75"],
    ),
    "bf16 on sm75": (product(B), "sm75", ["MatMul one: BF16 has no kernels on sm75"]),
    "fp8 on sm86": (
        dequantized(T.FLOAT8E4M3FN, H),
        "sm86",
        ["DequantizeLinear weight: FP8 has no kernels on sm86"],
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_tensorrt_builds_has_no_complaint(name):
    model, target = TAKEN[name]
    assert lint(model, "tensorrt", [target]) == []
    assert refusal(model, target) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_a_complaint_tensorrt_refuses(name):
    model, target, told = REFUSED[name]
    found = lint(model, "tensorrt", [target])
    assert [line[: len(start)] for line, start in zip(found, told, strict=True)] == told
    assert refusal(model, target) is not None


@pytest.mark.parametrize("zero", [np.uint8(0), None], ids=["zero-point", "no zero-point"])
def test_bytes_that_tensorrt_would_read_as_signed_integers(zero):
    model = rounded(zero)
    assert [line.partition(":")[0] for line in lint(model, "tensorrt")][:1] == [
        "QuantizeLinear round"
    ]
    assert refusal(model) is None  # it builds, and means something else


def test_what_depends_on_the_gpu_is_told_of_each():
    model = dequantized(T.FLOAT8E4M3FN)
    assert lint(model, "tensorrt") == []
    assert lint(model, "tensorrt", ["sm75", "sm80", "sm120"]) == [
        "DequantizeLinear weight: FP8 has no kernels on sm75",
        "DequantizeLinear weight: FP8 has no kernels on sm80",
        "MatMul one: FP32 products have no kernels on sm75",
    ]


def test_a_graph_whose_types_contradict_each_other_is_looked_at_all_the_same():
    model = product(F, H)
    model.graph.value_info.append(model.graph.output[0])
    model.graph.output[0].type.tensor_type.elem_type = H
    assert len(lint(model, "tensorrt", ["sm86"])) == 1
