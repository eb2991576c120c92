"""Small graphs that break a rule of TensorRT, or keep them all; and what the real library makes of one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.runtimes.tensorrt.profiles import Profile
from passes.tensorrt.compile_worker import Request, build

F, H, B, D = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE


def graph(nodes, constants=(), kind=F, out=None, shape=("n", 4)):
    """x [n, 4] to y, by nodes; constants are arrays by name, or tensors."""
    tensors = [
        value
        if isinstance(value, TensorProto)
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in dict(constants).items()
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, list(shape))],
            [helper.make_tensor_value_info("y", kind if out is None else out, None)],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def node(operator, inputs, output="y", name="one", **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=name, **attributes)


def filled(kind, value=1.0, shape=(4, 4), name="w"):
    return helper.make_tensor(name, kind, shape, [value] * int(np.prod(shape)))


def product(kind, weight=None):
    """x · w, both of one type, or of two."""
    return graph([node("MatMul", "x w")], {"w": filled(kind if weight is None else weight)}, kind)


def dequantized(stored, kind=F, zero=None, shape=(4, 4), **attributes):
    """x · DequantizeLinear(w), with a scale for each column or block."""
    scales = (
        (4,) if "block_size" not in attributes else (shape[0] // attributes["block_size"], shape[1])
    )
    constants = {"w": filled(stored, 1, shape), "s": filled(kind, 0.1, scales, "s")}
    names = "w s"
    if zero is not None:
        constants["z"], names = filled(stored, zero, scales, "z"), "w s z"
    nodes = [
        node("DequantizeLinear", names, "d", "weight", **({"axis": 1} | attributes)),
        node("MatMul", "x d"),
    ]
    return graph(nodes, constants, kind, shape=("n", shape[0]))


def rounded(zero, scale=0.1, operator="MatMul"):
    """x rounded and back, times a weight; the zero-point is an array, or None for none."""
    constants = {"s": np.float32(scale), "w": np.ones((4, 4), np.float32)}
    names = "s" if zero is None else "s z"
    if zero is not None:
        constants["z"] = zero
    return graph(
        [
            node("QuantizeLinear", f"x {names}", "q", "round"),
            node("DequantizeLinear", f"q {names}", "d", "back"),
            node(operator, "d w"),
        ],
        constants,
    )


def refusal(model: onnx.ModelProto, target: str = "sm86", profiles=None) -> str | None:
    """What tensorrt-rtx says when it does not build a graph; None where it does."""
    if profiles is None:
        shape = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim]
        low, high = tuple(one or 1 for one in shape), tuple(one or 4 for one in shape)
        profiles = {"x": Profile(min=low, opt=low, max=high)} if 0 in shape else {}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        answer = build(request_of(Path(folder), target, profiles))
    return "\n".join(answer.errors) or None


def request_of(folder, target, profiles):
    """The build of the graph in a folder by tensorrt-rtx."""
    return Request(
        backend="rtx",
        onnx=str(folder / "model.onnx"),
        engine=str(folder / "model.engine"),
        target=target,
        profiles=profiles,
        workspace_mb=64,
        optimization_level=None,
    )
