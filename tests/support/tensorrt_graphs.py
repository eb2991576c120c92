"""Small graphs that break or keep the rules of TensorRT, and their builds by the real library."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.runtimes.tensorrt.profiles import Profile
from passes.tensorrt.compile_worker import BuildRequest, build

F, H, B, D = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE


def graph(nodes, constants=(), kind=F, out=None, shape=("n", 4)):
    """Return a model from x [n, 4] to y; constants are arrays or tensors by name."""
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
    """Return the product of x and w, whose types may differ."""
    return graph([node("MatMul", "x w")], {"w": filled(kind if weight is None else weight)}, kind)


def dequantized(stored, kind=F, zero=None, shape=(4, 4), **attributes):
    """Return the product of x and DequantizeLinear(w), with a scale per column or block."""
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
    """Return the product of a quantized and dequantized x and a weight; ``zero`` may be None."""
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
    """Return the errors of tensorrt-rtx for a graph, or None if it builds an engine."""
    if profiles is None:
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        shape = [dimension.dim_value for dimension in dimensions]
        low, high = tuple(size or 1 for size in shape), tuple(size or 4 for size in shape)
        profiles = {"x": Profile(min=low, opt=low, max=high)} if 0 in shape else {}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        report = build(build_request(Path(folder), target, profiles))
    return "\n".join(report.errors) or None


def build_request(folder, target, profiles):
    """Return the request to build the graph of a folder with tensorrt-rtx."""
    return BuildRequest(
        backend="rtx",
        onnx=str(folder / "model.onnx"),
        engine=str(folder / "model.engine"),
        target=target,
        profiles=profiles,
        workspace_mb=64,
        optimization_level=None,
    )
