"""Engines of the graphs that other passes write: the phone model, and quantized layers."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from compressor.artifacts.fingerprint import digest_file
from compressor.config.discovery import FAMILIES, load
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
from passes.qat.config import QatConfig
from passes.qat.step import Qat
from tests.support.engines import Arrays, build_engine, pass_context
from tests.support.training import Blobs

DRAW = np.random.default_rng(0)


def export(family, config, samples, folder, quantize=None):
    """Return the artifact of a network's ONNX graph, quantized before if there is a config."""
    torch.manual_seed(0)
    family.save(family.build(config), config, folder / "torch")
    parent = artifact(folder / "torch", "torch")
    parity = {"data": "some", "batch_size": 2, "agreement": 0.0}
    steps = [(ExportOnnx(), ExportOnnxConfig(parity=parity))]
    if quantize is not None:
        steps.insert(0, (Qat(), quantize))
    for step, fields in steps:
        out = folder / step.name
        out.mkdir()
        step.run(fields, parent, out, pass_context(samples, folder))
        parent = artifact(out, step.produces)
    return parent


def artifact(folder, format_name):
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind=format_name))


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """Export the phone model's smallest preset: bytes, and tokens and sound of any length."""
    family = load(FAMILIES, "autoglm-phone")
    config = family.presets["tiny"]
    sizes = {"tokens": 9, "frames": 48}
    arrays = {}
    for spec in family.signature(config).inputs:
        shape = (6, *(sizes[size] if isinstance(size, str) else size for size in spec.shape[1:]))
        is_float = spec.dtype == "float32"
        high = spec.below or 256
        values = DRAW.normal(size=shape) if is_float else DRAW.integers(0, high, shape)
        arrays[spec.name] = values.astype(spec.dtype)
    samples = Arrays(**arrays)
    bounds = {"min": 1, "opt": 1, "max": 4}
    profiles = {
        name: {bound: (size, *array.shape[1:]) for bound, size in bounds.items()}
        for name, array in arrays.items()
    }
    profiles["tokens"]["max"] = (4, 32)
    folder = tmp_path_factory.mktemp("phone")
    return export(family, config, samples, folder), samples, profiles


def test_the_phone_model_in_fp16(phone, tmp_path):
    parent, samples, profiles = phone
    calibration = {"data": "some", "num_samples": 6, "batch_size": 2}
    fields = {"calibration": calibration, "profiles": profiles}
    summary = build_engine(fields, parent, samples, tmp_path / "out")
    assert summary["against_parent"]["cosine"] > 0.9999
    build_engine(fields, parent, samples, tmp_path / "the same engine once more")
    names = ("out", "the same engine once more")
    first, second = (digest_file(tmp_path / name / "model.sm86.engine") for name in names)
    assert first == second
    manifest = read_verified_manifest(tmp_path / "out")
    assert {tensor.name: tensor.dtype for tensor in manifest.inputs} == {
        "screen": "uint8",
        "tokens": "int64",
        "mel": "float",
    }
    assert manifest.layer_types["half"] > manifest.layer_types["float"]
    reasons = {row["reason"] for row in summary["kept_fp32"]}
    assert {
        "sums over many values",
        "made of shapes and constants alone, as positions are",
    } <= reasons


IMAGES = {"image": {"min": (1, 3, 16, 16), "opt": (1, 3, 16, 16), "max": (8, 3, 16, 16)}}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Export a small convolutional network that is quantized for TensorRT."""
    family = load(FAMILIES, "image-classifier")
    sizes = {("num_classes",): 2, ("image_size",): 16}
    config = replace_fields(family.presets["small"], sizes)
    quantize = QatConfig(target="tensorrt", calibration={"data": "some", "num_samples": 16})
    return export(family, config, Blobs(), tmp_path_factory.mktemp("integers"), quantize)


@pytest.mark.parametrize("floats", ["fp16", "fp32"])
def test_integers_and_scales_of_qat_reach_the_engine(floats, tmp_path, quantized):
    fields = {
        "precision": "int8",
        "floats": floats,
        "calibration": {"data": "some", "num_samples": 8, "batch_size": 4},
        "profiles": IMAGES,
    }
    summary = build_engine(fields, quantized, Blobs(), tmp_path / "out")
    assert summary["layer_types"]["int8"] > 0
    assert ("half" in summary["layer_types"]) == (floats == "fp16")
    assert summary["against_parent"]["cosine"] > 0.99
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    scales = [
        constants[node.input[1]]
        for node in graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    half_scales = [scale for scale in scales if scale.dtype == np.float16]
    assert bool(half_scales) == (floats == "fp16")
    # This network is untrained: some of its scales are too small for FP16.
    assert all(scale.min() >= 2.0**-17 for scale in half_scales)
    assert len(half_scales) < len(scales)


def test_a_precision_that_the_graph_does_not_have_is_refused(quantized, tmp_path):
    fields = {"precision": "fp32", "profiles": IMAGES}
    message = "precision fp32: the graph holds integers; set `precision: int8`"
    with pytest.raises(RequirementError, match=message):
        build_engine(fields, quantized, Blobs(), tmp_path / "out")
