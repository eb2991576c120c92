"""Compare ways to compute the experts of one layer in ONNX Runtime.

    python benchmarks/expert_operators.py [--rounds 30] [--threads 1]

One layer of 32 experts (1024 wide, 512 inside, SwiGLU), 4 for each token, random weights, float32
and INT4 in groups of 64. In every round each way runs in random order, with one token and, in
``--prompt-rounds``, with 256. Printed are medians and ranges in milliseconds, and the largest
difference from the branches of the same weights, relative to the largest value.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HIDDEN, WIDTH, EXPERTS, CHOSEN, GROUP = 1024, 512, 32, 4, 64
MICROSOFT = "com.microsoft"
INTEGER_LEVEL = 4
Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
UP = (RANDOM.standard_normal((EXPERTS, 2 * WIDTH, HIDDEN)) / HIDDEN**0.5).astype(np.float32)
DOWN = (RANDOM.standard_normal((EXPERTS, HIDDEN, WIDTH)) / WIDTH**0.5).astype(np.float32)
ALTERNATING = np.arange(2 * WIDTH).reshape(2, -1).T.ravel()
"""Rows of gate and up in turn, as QMoE and MoE read them."""


def quantize(weight: Array) -> tuple[Array, Array]:
    """Return integers 0 to 15 around 8, and scales of groups."""
    groups = weight.reshape(*weight.shape[:2], -1, GROUP)
    scales = np.abs(groups).max(axis=-1) / 7
    integers = np.round(groups / scales[..., None]) + 8
    return integers.astype(np.uint8).reshape(weight.shape), scales.astype(np.float32)


PACKED = {"up": quantize(UP), "down": quantize(DOWN)}


def nibbles(integers: Array) -> Array:
    """Return two integers per byte, the first one in the lower bits."""
    packed: Array = integers[..., 0::2] | (integers[..., 1::2] << 4)
    return packed


class Layer:
    """Graph of one way to compute the layer, under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {
            "parts": np.array([WIDTH, WIDTH]),
            "chosen": np.array([CHOSEN]),
            **{f"axis{axis}": np.array([axis]) for axis in (0, 1, 2)},
        }

    def op(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Append a node."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def route(self) -> None:
        """Append the shares of the chosen experts, and of all."""
        self.op("TopK", ["logits", "chosen"], ["values", "indices"], axis=-1)
        self.op("Softmax", ["values"], ["weights"], axis=-1)
        self.op("Shape", ["logits"], ["shape"])
        self.op("ConstantOfShape", ["shape"], ["none"])
        self.op("ScatterElements", ["none", "indices", "weights"], ["shares"], axis=1)

    def product(self, x: str, part: str, expert: int, kind: str) -> str:
        """Append one product of an expert, and return its result."""
        name = f"{part}.{expert}"
        if kind == "float32":
            weight = (UP if part == "up" else DOWN)[expert]
            self.constants[f"{name}.weight"] = np.ascontiguousarray(weight.T)
            self.op("MatMul", [x, f"{name}.weight"], [name])
            return name
        integers, scales = (values[expert] for values in PACKED[part])
        outputs, inputs = integers.shape
        if kind == "MatMulNBits":
            self.constants[f"{name}.data"] = nibbles(integers).reshape(outputs, -1, GROUP // 2)
            self.constants[f"{name}.scales"] = scales
            sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": GROUP}
            operands = [x, f"{name}.data", f"{name}.scales"]
            level = {"accuracy_level": INTEGER_LEVEL, "domain": MICROSOFT}
            self.op("MatMulNBits", operands, [name], **sizes, **level)
            return name
        signed = (integers.astype(np.int8) - 8).T.astype(ml_dtypes.int4)
        self.constants[f"{name}.data"] = np.ascontiguousarray(signed)
        self.constants[f"{name}.scales"] = np.ascontiguousarray(scales.T)
        operands = [f"{name}.data", f"{name}.scales"]
        self.op("DequantizeLinear", operands, [f"{name}.whole"], axis=0, block_size=GROUP)
        self.op("MatMul", [x, f"{name}.whole"], [name])
        return name

    def gated(self, joined: str, name: str) -> str:
        """Append SwiGLU, and return its result."""
        self.op("Split", [joined, "parts"], [f"{name}.gate", f"{name}.up"], axis=-1)
        self.op("Sigmoid", [f"{name}.gate"], [f"{name}.sigmoid"])
        self.op("Mul", [f"{name}.gate", f"{name}.sigmoid"], [f"{name}.silu"])
        self.op("Mul", [f"{name}.silu", f"{name}.up"], [f"{name}.inner"])
        return f"{name}.inner"

    def expert(self, x: str, number: int, kind: str) -> str:
        """Append an expert, and return its result."""
        inner = self.gated(self.product(x, "up", number, kind), f"expert{number}")
        return self.product(inner, "down", number, kind)

    def branch(self, number: int, total: str, kind: str) -> str:
        """Append a branch that adds an expert's result, and return the new total."""
        name, outer, held = f"branch{number}", self.nodes, set(self.constants)
        self.nodes = []
        self.op("Squeeze", [f"share{number}", "axis0"], [f"{name}.shares"])
        self.op("NonZero", [f"{name}.shares"], [f"{name}.rows2d"])
        self.op("Squeeze", [f"{name}.rows2d", "axis0"], [f"{name}.rows"])
        self.op("Gather", ["x", f"{name}.rows"], [f"{name}.x"], axis=0)
        result = self.expert(f"{name}.x", number, kind)
        self.op("Gather", [f"{name}.shares", f"{name}.rows"], [f"{name}.share"], axis=0)
        self.op("Unsqueeze", [f"{name}.share", "axis1"], [f"{name}.column"])
        self.op("Mul", [result, f"{name}.column"], [f"{name}.weighted"])
        self.op("Unsqueeze", [f"{name}.rows", "axis1"], [f"{name}.indices"])
        operands = [total, f"{name}.indices", f"{name}.weighted"]
        self.op("ScatterND", operands, [f"{name}.added"], reduction="add")
        own = [key for key in self.constants if key not in held and kind == "DequantizeLinear"]
        tensors = [numpy_helper.from_array(self.constants.pop(key), key) for key in own]
        added = helper.make_tensor_value_info(f"{name}.added", TensorProto.FLOAT, None)
        then = helper.make_graph(self.nodes, f"{name}.then", [], [added], tensors)
        same = helper.make_tensor_value_info(f"{name}.same", TensorProto.FLOAT, None)
        copy = helper.make_node("Identity", [total], [f"{name}.same"])
        other = helper.make_graph([copy], f"{name}.else", [], [same])
        self.nodes = outer
        result = "y" if number == EXPERTS - 1 else f"total{number}"
        self.op("If", [f"reached{number}"], [result], then_branch=then, else_branch=other)
        return result

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        """Return a session of the graph."""
        shapes = {"x": ["tokens", HIDDEN], "logits": ["tokens", EXPERTS], "y": ["tokens", HIDDEN]}
        x, logits, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        )
        constants = [numpy_helper.from_array(v, name) for name, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "layer", [x, logits], [y], constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def one_operator(operator: str) -> Layer:
    """Return the layer as MoE or QMoE."""
    layer = Layer()
    gate = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0}
    routing = {"k": CHOSEN, "normalize_routing_weights": 1, "domain": MICROSOFT}
    if operator == "MoE":
        layer.constants |= {"up": UP[:, ALTERNATING], "down": DOWN}
        layer.op("MoE", ["x", "logits", "up", "", "down"], ["y"], **gate, **routing)
        return layer
    (up, up_scales), (down, down_scales) = PACKED["up"], PACKED["down"]
    layer.constants |= {"up": nibbles(up[:, ALTERNATING]), "up.scales": up_scales[:, ALTERNATING]}
    layer.constants |= {"down": nibbles(down), "down.scales": down_scales}
    operands = ["x", "logits", "up", "up.scales", "", "down", "down.scales"]
    integers = {"expert_weight_bits": 4, "block_size": GROUP, "weights_prepacked": 0}
    layer.op("QMoE", operands, ["y"], **gate, **routing, **integers, accuracy_level=INTEGER_LEVEL)
    return layer


def branches(kind: str) -> Layer:
    """Return the layer as a branch for each expert."""
    layer = Layer()
    layer.route()
    layer.op("Transpose", ["shares"], ["by_expert"], perm=[1, 0])
    layer.op("Cast", ["by_expert"], ["flags"], to=TensorProto.BOOL)
    layer.op("Cast", ["flags"], ["numbers"], to=TensorProto.INT32)
    layer.op("ReduceMax", ["numbers", "axis1"], ["most"], keepdims=0)
    layer.op("Cast", ["most"], ["reached"], to=TensorProto.BOOL)
    for name, source in (("reached", "reached"), ("share", "by_expert")):
        parts = [f"{name}{number}" for number in range(EXPERTS)]
        layer.op("Split", [source], parts, axis=0, num_outputs=EXPERTS)
    layer.op("Shape", ["x"], ["x.shape"])
    layer.op("ConstantOfShape", ["x.shape"], ["total"])
    total = "total"
    for number in range(EXPERTS):
        total = layer.branch(number, total, kind)
    return layer


def dense(kind: str) -> Layer:
    """Return the layer as the weighted sum of all experts."""
    layer = Layer()
    layer.route()
    parts = [f"share{number}" for number in range(EXPERTS)]
    layer.op("Split", ["shares"], parts, axis=1, num_outputs=EXPERTS)
    for number in range(EXPERTS):
        result = layer.expert("x", number, kind)
        layer.op("Mul", [result, f"share{number}"], [f"part{number}"])
    layer.op("Sum", [f"part{number}" for number in range(EXPERTS)], ["y"])
    return layer


def gathered() -> Layer:
    """Return the layer with the matrices of each token's experts gathered, as traced."""
    layer = Layer()
    layer.route()
    layer.constants |= {"up": np.ascontiguousarray(UP.transpose(0, 2, 1))}
    layer.constants |= {"down": np.ascontiguousarray(DOWN.transpose(0, 2, 1))}
    layer.constants |= {"inner": np.array([1, 2]), "outer": np.array([2, 3])}
    layer.op("Gather", ["up", "indices"], ["up.chosen"], axis=0)
    layer.op("Gather", ["down", "indices"], ["down.chosen"], axis=0)
    layer.op("Unsqueeze", ["x", "inner"], ["x.4d"])
    layer.op("MatMul", ["x.4d", "up.chosen"], ["joined"])
    layer.op("MatMul", [layer.gated("joined", "all"), "down.chosen"], ["results"])
    layer.op("Unsqueeze", ["weights", "outer"], ["weights.4d"])
    layer.op("Mul", ["results", "weights.4d"], ["weighted"])
    layer.op("ReduceSum", ["weighted", "inner"], ["y"], keepdims=0)
    return layer


WAYS: dict[str, Callable[[], Layer]] = {
    "float32, branches": lambda: branches("float32"),
    "float32, MoE": lambda: one_operator("MoE"),
    "float32, all experts": lambda: dense("float32"),
    "float32, gathered": gathered,
    "INT4, branches with MatMulNBits": lambda: branches("MatMulNBits"),
    "INT4, QMoE": lambda: one_operator("QMoE"),
    "INT4, branches with DequantizeLinear": lambda: branches("DequantizeLinear"),
    "INT4, all experts": lambda: dense("MatMulNBits"),
}


def main() -> None:
    """Measure in turns, and print a table for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prompt-rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    sessions = {name: way().session(arguments.threads) for name, way in WAYS.items()}
    for tokens, rounds in ((1, arguments.rounds), (256, arguments.prompt_rounds)):
        names = [name for name in WAYS if tokens == 1 or name != "float32, gathered"]
        milliseconds: dict[str, list[float]] = {name: [] for name in names}
        results: dict[str, Array] = {}
        for number in range(rounds + 1):
            values = np.random.default_rng(number)
            feeds = {
                "x": values.standard_normal((tokens, HIDDEN), dtype=np.float32),
                "logits": values.standard_normal((tokens, EXPERTS), dtype=np.float32),
            }
            for name in random.sample(names, len(names)):
                start = time.perf_counter()
                [results[name]] = sessions[name].run(None, feeds)
                if number:  # the first round warms up
                    milliseconds[name].append(1e3 * (time.perf_counter() - start))
        for name in names:
            times, kind = milliseconds[name], name.partition(",")[0]
            first = next(other for other in names if other.startswith(kind))
            difference = np.abs(results[name] - results[first]).max() / np.abs(results[first]).max()
            print(
                f"| {name} | {tokens} | {statistics.median(times):.2f} "
                f"({min(times):.2f}–{max(times):.2f}) | {difference:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
