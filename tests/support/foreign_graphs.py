"""Small ONNX graphs as other tools write them, samples for them, and runs of ``optimize-onnx``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor.runtimes.onnxruntime.integer_kernels import EMULATED_PRODUCTS
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.step import OptimizeOnnx
from tests.support.engines import Arrays, node

DRAW = np.random.default_rng(7)
_START = DRAW.bit_generator.state


def reseed():
    """Draw the same numbers again, so that a test does not depend on those before it."""
    DRAW.bit_generator.state = _START


def graph(nodes, weights, inputs, outputs, opset=13, **fields):
    """Return a model; inputs and outputs map names to shapes, weights to arrays."""

    def infos(shapes):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors)
    opsets = [helper.make_opsetid("", opset), *fields.pop("opsets", ())]
    return helper.make_model(made, opset_imports=opsets, ir_version=8, **fields)


def weight(*shape):
    return (DRAW.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def residual_network(opset=13):
    """Return a network with a normalization, a residual sum, pooling, a gate, and a Gemm."""
    nodes = [
        node("Conv", "image k1", "c1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c1 gamma beta mean variance", "n1"),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 k2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "sum"),
        node("Relu", "sum", "r2"),
        node("MaxPool", "r2", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool k3 b3", "c3", pads=[1, 1, 1, 1]),
        node("Sigmoid", "c3", "gate"),
        node("Mul", "c3 gate", "swish"),
        node("GlobalAveragePool", "swish", "mean_pool"),
        node("Flatten", "mean_pool", "flat"),
        node("Gemm", "flat head head_bias", "scores", transB=1),
    ]
    weights = {
        "k1": weight(8, 3, 3, 3),
        "gamma": DRAW.uniform(0.5, 1.5, 8).astype(np.float32),
        "beta": DRAW.normal(size=8).astype(np.float32),
        "mean": DRAW.normal(size=8).astype(np.float32),
        "variance": DRAW.uniform(0.5, 1.5, 8).astype(np.float32),
        "k2": weight(8, 8, 3, 3),
        "b2": DRAW.normal(size=8).astype(np.float32),
        "k3": weight(16, 8, 3, 3),
        "b3": DRAW.normal(size=16).astype(np.float32),
        "head": weight(10, 16),
        "head_bias": DRAW.normal(size=10).astype(np.float32),
    }
    return graph(nodes, weights, {"image": ["N", 3, 16, 16]}, {"scores": ["N", 10]}, opset)


def feed_forward(outlier=1.0):
    """Return a table of embeddings, a norm, and two products; a channel may have outliers."""
    gamma = np.ones(32, np.float32)
    gamma[5] = outlier
    nodes = [
        node("Gather", "table tokens", "rows"),
        node("LayerNormalization", "rows gamma beta", "normed"),
        node("MatMul", "normed up", "wide"),
        node("Add", "wide up_bias", "biased"),
        node("Relu", "biased", "active"),
        node("MatMul", "active down", "features"),
    ]
    weights = {
        "table": weight(300, 32) * 6,
        "gamma": gamma,
        "beta": np.zeros(32, np.float32),
        "up": weight(32, 64) * 3,
        "up_bias": DRAW.normal(size=64).astype(np.float32),
        "down": weight(64, 32),
    }
    model = graph(nodes, weights, {}, {"features": ["N", "T", 32]}, opset=17)
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])
    model.graph.input.append(tokens)
    return model


def half(model):
    """Return a graph with all constants, inputs and outputs in FP16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def branched():
    """Return a graph with an If whose branches hold two products, and a foreign operator."""
    inner = [
        helper.make_graph(
            [node("MatMul", f"h {name}", f"out_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight(16, 16), name)],
        )
        for name in ("a", "b")
    ]
    nodes = [
        node("MatMul", "x w", "h"),
        node("ReduceSum", "h", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node(
            "If", ["positive"], ["z"], name="gate", then_branch=inner[0], else_branch=inner[1]
        ),
        helper.make_node("QuickGelu", ["z"], ["y"], domain="com.microsoft"),
    ]
    weights = {"w": weight(32, 16), "zero": np.float32(0)}
    opsets = [helper.make_opsetid("com.microsoft", 1)]
    return graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 16]}, opsets=opsets)


IMAGES = DRAW.normal(size=(24, 3, 16, 16)).astype(np.float32)
TOKENS = DRAW.integers(0, 300, size=(24, 12))


class Optimized:
    """The result of an ``optimize-onnx`` step on a graph."""

    def __init__(self, model, folder, samples, **fields):
        self.parent = folder / "parent"
        self.out = folder / "out"
        for path in (self.parent, self.out):
            path.mkdir()
        onnx.save(model, self.parent / "model.onnx")
        self.notes: list[str] = []
        context = SimpleNamespace(
            data=lambda _: Arrays(**samples),
            work=folder / "work",
            threads=1,
            device="cpu",
            progress=lambda *_: None,
            note=self.notes.append,
        )
        config = OptimizeOnnxConfig.model_validate_json(
            json.dumps({"calibration": {"data": "c"}, **fields})
        )
        step, artifact = OptimizeOnnx(), SimpleNamespace(model=self.parent)
        step.requires(config, artifact, context)
        self.summary = dict(step.run(config, artifact, self.out, context).summary)
        step.ensures(config, artifact, self.out, context)
        self.samples = samples
        self.graph = onnx.load(self.out / "model.onnx").graph

    def operators(self):
        return [each.op_type for each in self.graph.node]

    def sizes(self):
        return [(path / "model.onnx").stat().st_size for path in (self.parent, self.out)]

    def outputs(self, *, emulated=True):
        """Return the first output of the parent and of the result.

        Emulated, integer products do not saturate on processors without VNNI either.
        """
        options = onnxruntime.SessionOptions()
        for key, setting in EMULATED_PRODUCTS.items() if emulated else ():
            options.add_session_config_entry(key, setting)
        return [
            onnxruntime.InferenceSession(
                path / "model.onnx", options, providers=["CPUExecutionProvider"]
            ).run(None, self.samples)[0]
            for path in (self.parent, self.out)
        ]

    def error(self, **options):
        """Return ‖Δ‖ / ‖parent's values‖ of the first output."""
        expected, actual = self.outputs(**options)
        return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def optimized_operators(path, tmp_path):
    """Return the operators that ONNX Runtime computes, after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.graph_optimization_level = level
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [each.op_type for each in onnx.load(options.optimized_model_filepath).graph.node]
