"""Engines of what the other passes make: the phone model, and layers of integers."""

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
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
from passes.qat.step import Qat, QatConfig
from tests.support.training import Blobs
from tests.unit.passes.tensorrt.engines import Arrays, built, context_of

DRAW = np.random.default_rng(0)


def exported(family, config, samples, folder, quantize=None):
    """An artifact of a network's ONNX file."""
    torch.manual_seed(0)
    family.save(family.build(config), config, folder / "torch")
    parent = SimpleNamespace(
        model=folder / "torch", manifest=SimpleNamespace(id="ab12", kind="torch")
    )
    steps = [
        (ExportOnnx(), ExportOnnxConfig(parity={"data": "some", "batch_size": 2, "agreement": 0.0}))
    ]
    if quantize is not None:
        steps.insert(0, (Qat(), quantize))
    for found, fields in steps:
        out = folder / found.name
        out.mkdir()
        found.run(fields, parent, out, context_of(samples, folder))
        parent = SimpleNamespace(
            model=out, manifest=SimpleNamespace(id="ab12", kind=found.produces)
        )
    return parent


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """The phone model's smallest preset: bytes, tokens and sound of any length."""
    family = load(FAMILIES, "autoglm-phone")
    config = family.presets["tiny"]
    sizes = {"tokens": 9, "frames": 48}
    arrays = {}
    for spec in family.signature(config).inputs:
        shape = (6, *(sizes[one] if isinstance(one, str) else one for one in spec.shape[1:]))
        high = spec.below or 256
        values = (
            DRAW.normal(size=shape) if spec.dtype == "float32" else DRAW.integers(0, high, shape)
        )
        arrays[spec.name] = values.astype(spec.dtype)
    samples = Arrays(**arrays)
    folder = tmp_path_factory.mktemp("phone")
    profiles = {
        name: {
            kind: (size, *array.shape[1:]) for kind, size in (("min", 1), ("opt", 1), ("max", 4))
        }
        for name, array in arrays.items()
    }
    profiles["tokens"]["max"] = (4, 32)
    return exported(family, config, samples, folder), samples, profiles


def test_the_phone_model_in_fp16(phone, tmp_path):
    parent, samples, profiles = phone
    fields = {
        "calibration": {"data": "some", "num_samples": 6, "batch_size": 2},
        "profiles": profiles,
    }
    told = built(fields, parent, samples, tmp_path / "out")
    assert told["against_parent"]["cosine"] > 0.9999
    built(fields, parent, samples, tmp_path / "the same engine once more")
    engines = [
        tmp_path / name / "model.sm86.engine" for name in ("out", "the same engine once more")
    ]
    assert digest_file(engines[0]) == digest_file(engines[1])
    manifest = read_verified_manifest(tmp_path / "out")
    assert {one.name: one.dtype for one in manifest.inputs} == {
        "screen": "uint8",
        "tokens": "int64",
        "mel": "float",
    }
    assert manifest.layer_types["half"] > manifest.layer_types["float"]
    reasons = {one["reason"] for one in told["kept_fp32"]}
    assert {
        "sums over many values",
        "made of shapes and constants alone, as positions are",
    } <= reasons


@pytest.mark.parametrize("floats", ["fp16", "fp32"])
def test_the_integers_of_qat(floats, tmp_path, integers):
    parent = integers
    fields = {
        "precision": "int8",
        "floats": floats,
        "calibration": {"data": "some", "num_samples": 8, "batch_size": 4},
        "profiles": {
            "image": {"min": (1, 3, 16, 16), "opt": (1, 3, 16, 16), "max": (8, 3, 16, 16)}
        },
    }
    told = built(fields, parent, Blobs(), tmp_path / "out")
    assert told["layer_types"]["int8"] > 0
    assert ("half" in told["layer_types"]) == (floats == "fp16")
    assert told["against_parent"]["cosine"] > 0.99
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    scales = [
        constants[one.input[1]]
        for one in graph.node
        if one.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    halves = [one for one in scales if one.dtype == np.float16]
    assert bool(halves) == (floats == "fp16")
    assert all(
        one.min() >= 2.0**-17 for one in halves
    )  # this network is untrained: some of its scales are smaller
    assert len(halves) < len(scales)


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    """A small convolutional network, quantized for TensorRT."""
    family = load(FAMILIES, "image-classifier")
    config = replace_fields(family.presets["small"], {("num_classes",): 2, ("image_size",): 16})
    quantize = QatConfig(target="tensorrt", calibration={"data": "some", "num_samples": 16})
    return exported(family, config, Blobs(), tmp_path_factory.mktemp("integers"), quantize)


def test_a_precision_that_the_graph_does_not_have(integers, phone, tmp_path):
    fields = {
        "precision": "fp32",
        "profiles": {
            "image": {"min": (1, 3, 16, 16), "opt": (1, 3, 16, 16), "max": (8, 3, 16, 16)}
        },
    }
    with pytest.raises(
        RequirementError, match="precision fp32: the graph holds integers; say `precision: int8`"
    ):
        built(fields, integers, Blobs(), tmp_path / "out")
