"""Rules of TensorRT: graphs that break them and that tensorrt-rtx refuses, and others."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from compressor.graphs.lint.targets import lint
from compressor.graphs.lint.tensorrt import _INTEGER_OPERATORS
from compressor.graphs.lint.tensorrt_operators import LACKING
from tests.support.tensorrt_graphs import (
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

ACCEPTED = {
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
    "int8 table": (
        graph(
            [
                node("Gather", "w i", "rows", "lookup"),
                node("DequantizeLinear", "rows s z", "d"),
                node("Add", "x d"),
            ],
            {
                "w": np.ones((300, 4), np.int8),
                "i": np.arange(4),
                "s": np.float32(0.1),
                "z": np.int8(0),
            },
        ),
        "sm86",
        ["Gather lookup: reads the INT8 constant w"],
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
        ["input x: TensorRT engines take no UINT16 inputs"],
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


def branches(first="n"):
    """Return a graph that squeezes x [first, 4] if its first size is 1."""
    squeezed = helper.make_graph(
        [helper.make_node("Squeeze", ["x", "zero"], ["o1"])],
        "then",
        [],
        [helper.make_tensor_value_info("o1", F, [4])],
    )
    as_it_is = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o2"])],
        "else",
        [],
        [helper.make_tensor_value_info("o2", F, [first, 4])],
    )
    choice = helper.make_node(
        "If", ["is_one"], ["y"], "choice", then_branch=squeezed, else_branch=as_it_is
    )
    return graph(
        [
            node("Shape", "x", "shape", "shape"),
            node("Gather", "shape zero", "size", "size"),
            node("Equal", "size one", "equal", "equal"),
            node("Squeeze", "equal", "is_one", "flag"),
            choice,
        ],
        {"zero": np.array([0]), "one": np.array([1])},
        shape=(first, 4),
    )


ACCEPTED |= {"branches by a fixed size": (branches(1), "sm86")}
REFUSED |= {
    "branches of two ranks": (
        branches(),
        "sm86",
        ["If choice: its branches give 2 and 1 dimensions, and its condition varies"],
    ),
    "NonZero": (graph([node("NonZero", "x")], out=T.INT64), "sm86", ["NonZero one: TensorRT has"]),
    "Det": (graph([node("Det", "x")]), "sm86", ["Det one: TensorRT has no such operator"]),
    "a sequence": (
        graph([node("SequenceConstruct", "x x", "s"), node("ConcatFromSequence", "s", axis=0)]),
        "sm86",
        ["SequenceConstruct one: TensorRT has", "ConcatFromSequence one: TensorRT has"],
    ),
}


def test_the_operators_that_the_parser_lacks_are_listed():
    tensorrt = pytest.importorskip("tensorrt_rtx")
    log = tensorrt.Logger(tensorrt.Logger.ERROR)
    network = tensorrt.Builder(log).create_network(0)
    parser = tensorrt.OnnxParser(network, log)
    operators = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    missing = {name for name in operators if not parser.supports_operator(name)}
    assert missing <= LACKING | _INTEGER_OPERATORS
    assert missing >= LACKING - {"NonZero", "NonMaxSuppression"}


def lines(model, gpus=()):
    return [str(problem) for problem in lint(model, "tensorrt", gpus)]


@pytest.mark.parametrize("name", ACCEPTED)
def test_graphs_that_tensorrt_builds_have_no_problems(name):
    model, gpu = ACCEPTED[name]
    assert lines(model, [gpu]) == []
    assert refusal(model, gpu) is None


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_with_problems_are_refused_by_tensorrt(name):
    model, gpu, expected = REFUSED[name]
    problems = lines(model, [gpu])
    starts = [line[: len(start)] for line, start in zip(problems, expected, strict=True)]
    assert starts == expected
    assert refusal(model, gpu) is not None


@pytest.mark.parametrize("zero", [np.uint8(0), None], ids=["zero-point", "no zero-point"])
def test_unsigned_integers_that_tensorrt_reads_as_signed_are_a_problem(zero):
    model = rounded(zero)
    assert lines(model)[0].partition(":")[0] == "QuantizeLinear round"
    assert refusal(model) is None  # it builds, and computes something else


def test_rules_that_depend_on_the_gpu_are_checked_for_each_gpu():
    model = dequantized(T.FLOAT8E4M3FN)
    assert lines(model) == []
    assert lines(model, ["sm75", "sm80", "sm120"]) == [
        "DequantizeLinear weight: FP8 has no kernels on sm75",
        "DequantizeLinear weight: FP8 has no kernels on sm80",
        "MatMul one: FP32 products have no kernels on sm75",
    ]


def test_a_graph_with_contradictory_types_is_linted():
    model = product(F, H)
    model.graph.value_info.append(model.graph.output[0])
    model.graph.output[0].type.tensor_type.elem_type = H
    assert len(lint(model, "tensorrt", ["sm86"])) == 1
