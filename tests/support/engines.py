"""Networks to build engines from, samples for them, and runs of the ``tensorrt`` pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.artifacts.fingerprint import digest_file
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from compressor.runtimes.tensorrt.manifest import (
    ENGINE,
    EngineFile,
    EngineManifest,
    TensorInfo,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import Profile
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.step import TensorRT

DRAW = np.random.default_rng(0)


class Arrays(Dataset):
    """A data set of arrays by input name."""

    label_name = None

    def __init__(self, **arrays):
        self.arrays = arrays
        self.input_names = tuple(arrays)

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}


def model_of(nodes, weights, shape, opset=20):
    """Return a model from x [shape] to logits; weights are arrays by name."""
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
    """Return two convolutions, a pool and a linear layer, for images of one size."""
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
    """Return a transformer block of 64 channels with two heads, for any number of tokens."""
    orders = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    nodes = [
        node("LayerNormalization", "x g b", "n1"),
        *(node("MatMul", f"n1 w{part}", part) for part in orders),
        *(node("Reshape", f"{part} heads", f"{part}h") for part in orders),
        *(node("Transpose", f"{part}h", f"{part}t", perm=order) for part, order in orders.items()),
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


NETWORKS = {"cnn": cnn, "transformer": transformer}
FP16 = {"precision": "fp16", "calibration": {"data": "some", "num_samples": 6, "batch_size": 2}}


def fields_of(network, **fields):
    """Return the fields of a step that builds a network in FP16, with changes."""
    return {**FP16, "profiles": PROFILES[network], **fields}


def save_parent(model, folder):
    """Write a model, and return it as the pass reads its parent."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return SimpleNamespace(model=folder)


def pass_context(samples, folder, notes=None):
    """Return the context of a run whose data sets are all ``samples``."""
    note = (notes if notes is not None else []).append
    return PassContext({}, lambda _: samples, folder, 0, 1, "cpu", "ab" * 32, lambda *_: None, note)


def build_engine(fields, parent, samples, out, notes=None):
    """Run all steps of the pass, and return its summary."""
    step = TensorRT()
    config = TensorRTConfig.model_validate({"backend": "rtx", "targets": ("sm86",), **fields})
    context = pass_context(samples, out.parent, notes)
    step.requires(config, parent, context)
    out.mkdir()
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return output.summary


def write_engine_folder(folder):
    """Write engine.json for two files that stand for engines; TensorRT never reads them."""
    (folder / "model.onnx").write_bytes(b"graph")
    engines = []
    for target in ("sm86", "sm89"):
        file = folder / f"model.{target}.engine"
        file.write_bytes(f"an engine for {target}".encode())
        engines.append(
            EngineFile(
                file=file.name,
                target=target,
                sha256=digest_file(file),
                bytes=18,
                warnings=("slow",),
                executed=False,
            )
        )
    tensor = TensorInfo(name="x", dtype="float", shape=(-1, 3))
    manifest = EngineManifest(
        backend="rtx",
        precision="fp16",
        floats="fp16",
        workspace_mb=64,
        optimization_level=None,
        profiles={"x": Profile(min=(1, 3), opt=(1, 3), max=(4, 3))},
        onnx={"model.onnx": digest_file(folder / "model.onnx")},
        backend_version="1.2.3",
        inputs=(tensor,),
        outputs=(tensor,),
        layer_types={"half": 2},
        engines=tuple(engines),
    )
    write_record(manifest, folder / ENGINE)
    return folder
