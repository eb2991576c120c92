"""Engines of language models, from the graphs of `target: portable`, with caches in and out."""

import json
from types import SimpleNamespace

import pytest

from calibration.sources.arrays import ArrayDataset
from compressor.errors import RequirementError
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from compressor.runtimes.tensorrt.profiles import Profile
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.step import TensorRT
from tests.support.decoders import FIELDS, TOKENS, export_decoder, pack_decoder, save_decoder
from tests.support.engines import pass_context

CACHE_SIZES = {"min": [1, 2, 0, 16], "opt": [1, 2, 8, 16], "max": [1, 2, 64, 16]}
PROFILES = {
    "input_ids": {"min": [1, 1], "opt": [1, 8], "max": [1, 64]},
    "attention_mask": {"min": [1, 1], "opt": [1, 16], "max": [1, 128]},
    "past_key_values.*": CACHE_SIZES,
}
CONFIG = {"backend": "rtx", "targets": ["sm86"], "profiles": PROFILES}
CALIBRATION = {"data": "some", "num_samples": 2, "batch_size": 1}
WINDOWS = ArrayDataset({"input_ids": TOKENS[:, :24]}, ("input_ids",))


def export_portable(parent, folder):
    export_decoder(parent, folder, {**FIELDS, "decoder": {"target": "portable"}})
    return SimpleNamespace(model=folder)


def build(parent, out, **fields):
    """Build an engine; return the summary and engine.json."""
    out.mkdir()
    config = TensorRTConfig.model_validate_json(json.dumps({**CONFIG, **fields}))
    context = pass_context(WINDOWS, out)
    TensorRT().requires(config, parent, context)
    output = TensorRT().run(config, parent, out, context)
    return output.summary, read_verified_manifest(out)


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4v"])
def test_a_decoder_becomes_an_engine_in_half_precision(preset, tmp_path):
    graph = export_portable(save_decoder(tmp_path / "torch", preset), tmp_path / "onnx")
    out = tmp_path / "engine"
    summary, manifest = build(graph, out, precision="fp16", calibration=CALIBRATION)
    assert summary["against_parent"]["cosine"] > 0.999
    names = {tensor.name for tensor in (*manifest.inputs, *manifest.outputs)}
    cache = {"past_key_values.0.key", "present.2.value"}
    assert {"input_ids", "attention_mask", "logits"} | cache <= names
    assert "logits_to_keep" not in names, "an engine has no optional inputs"
    profile = Profile.model_validate_json(json.dumps(CACHE_SIZES))
    assert manifest.profiles["past_key_values.2.value"] == profile


def export_packed(folder, **fields):
    """Return the graph of a decoder with packed weights."""
    parent = save_decoder(folder / "torch", "tiny-llama")
    return export_portable(pack_decoder(parent, folder / "packed", **fields), folder / "onnx")


def test_packed_integers_reach_the_engine(tmp_path):
    graph = export_packed(tmp_path, format="compressed-tensors", symmetric=True)
    out = tmp_path / "engine"
    summary, manifest = build(graph, out, precision="int4", calibration=CALIBRATION)
    assert summary["against_parent"]["cosine"] > 0.999
    assert manifest.engines[0].bytes > 0


def test_a_block_size_for_packed_integers_is_refused(tmp_path):
    graph = export_packed(tmp_path, format="compressed-tensors", symmetric=True)
    with pytest.raises(RequirementError, match="`block_size` has no effect"):
        build(graph, tmp_path / "engine", precision="int4", floats="fp32", block_size=32)


def test_zero_points_are_refused_with_the_remedy(tmp_path):
    graph = export_packed(tmp_path)
    with pytest.raises(RequirementError) as caught:
        build(graph, tmp_path / "engine", precision="int4", floats="fp32")
    assert "UINT4 integers" in caught.value.what
    assert "symmetric: true" in caught.value.remedy


def test_samples_longer_than_the_profile_are_refused(tmp_path):
    graph = export_portable(save_decoder(tmp_path / "torch", "tiny-llama"), tmp_path / "onnx")
    short = {**PROFILES, "input_ids": {"min": [1, 1], "opt": [1, 8], "max": [1, 16]}}
    fields = {"precision": "fp16", "profiles": short, "calibration": CALIBRATION}
    message = "profile input_ids: dimension 1 ranges from 1 to 16, but is 24 in the samples"
    with pytest.raises(RequirementError, match=message):
        build(graph, tmp_path / "engine", **fields)
