"""Networks to build engines of, samples for them, and the pass by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from passes.tensorrt.step import TensorRT, TensorRTConfig

DRAW = np.random.default_rng(0)


class Arrays(Dataset):
    """A set of the arrays that it is given."""

    label_name = None

    def __init__(self, **arrays):
        self.arrays = arrays
        self.input_names = tuple(arrays)

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}


def model_of(nodes, weights, shape, opset=20):
    """x [shape] to logits; weights are float32 arrays by name."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def weight(*shape):
    return (DRAW.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def cnn():
    """Two convolutions, a pool, an answer; images of one size, batches of any."""
    nodes = [
        node("Conv", "x k1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 k2", "c2", strides=[2, 2]),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w b", "logits", transB=1),
    ]
    weights = {
        "k1": weight(8, 3, 3, 3),
        "k2": weight(8, 8, 3, 3),
        "w": weight(5, 8),
        "b": weight(5),
    }
    return model_of(nodes, weights, ("n", 3, 12, 12))


def transformer(opset=20):
    """A block with two heads, of 64 channels, over any number of tokens."""
    orders = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    nodes = [
        node("LayerNormalization", "x g b", "n1"),
        *(node("MatMul", f"n1 w{one}", one) for one in orders),
        *(node("Reshape", f"{one} heads", f"{one}h") for one in orders),
        *(node("Transpose", f"{one}h", f"{one}t", perm=order) for one, order in orders.items()),
        node("MatMul", "qt kt", "scores"),
        node("Mul", "scores scale", "scaled"),
        node("Softmax", "scaled", "attention"),
        node("MatMul", "attention vt", "mixed"),
        node("Transpose", "mixed", "mt", perm=[0, 2, 1, 3]),
        node("Reshape", "mt whole", "joined"),
        node("MatMul", "joined wo", "out"),
        node("Add", "x out", "stream"),
        node("LayerNormalization", "stream g b", "n2"),
        node("MatMul", "n2 wi", "inner"),
        node("Gelu", "inner", "gelu"),
        node("MatMul", "gelu wd", "down"),
        node("Add", "stream down", "logits"),
    ]
    square = {name: weight(64, 64) for name in ("wq", "wk", "wv", "wo")}
    shapes = {"heads": np.array([0, 0, 2, 32]), "whole": np.array([0, 0, 64])}
    rest = {"g": np.ones(64, np.float32), "b": np.zeros(64, np.float32), "scale": np.float32(0.18)}
    return model_of(
        nodes,
        square | shapes | rest | {"wi": weight(64, 128), "wd": weight(128, 64)},
        ("n", "tokens", 64),
        opset,
    )


PROFILES = {
    "cnn": {"x": {"min": (1, 3, 12, 12), "opt": (1, 3, 12, 12), "max": (8, 3, 12, 12)}},
    "transformer": {"x": {"min": (1, 2, 64), "opt": (1, 8, 64), "max": (4, 16, 64)}},
}
SAMPLES = {
    "cnn": Arrays(x=DRAW.normal(size=(6, 3, 12, 12)).astype(np.float32)),
    "transformer": Arrays(x=DRAW.normal(size=(6, 7, 64)).astype(np.float32)),
}


def parent_of(model, folder):
    """An artifact as the pass reads it."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return SimpleNamespace(model=folder)


def context_of(samples, folder, notes=None):
    tell = (notes if notes is not None else []).append
    return PassContext({}, lambda _: samples, folder, 0, 1, "cpu", "ab" * 32, lambda *_: None, tell)


def built(fields, parent, samples, out, notes=None):
    """The whole pass; what it tells."""
    found = TensorRT()
    config = TensorRTConfig.model_validate({"backend": "rtx", "targets": ("sm86",), **fields})
    context = context_of(samples, out.parent, notes)
    found.requires(config, parent, context)
    out.mkdir()
    output = found.run(config, parent, out, context)
    found.ensures(config, parent, out, context)
    return output.summary
