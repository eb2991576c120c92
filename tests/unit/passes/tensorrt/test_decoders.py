"""Engines of language models: keys and values in and out, from the graphs that `target: portable` writes."""

import json
from types import SimpleNamespace

import pytest

from calibration.sources.arrays import ArrayDataset
from compressor.errors import RequirementError
from compressor.runtimes.tensorrt.files import checked_engine_manifest
from compressor.runtimes.tensorrt.profiles import Profile, by_input
from passes.tensorrt.step import TensorRT, TensorRTConfig
from tests.unit.passes.export_onnx.test_decoder import FIELDS, TOKENS, awq, exported, parent_in
from tests.unit.passes.tensorrt.engines import context_of

PAST = {"min": [1, 2, 0, 16], "opt": [1, 2, 8, 16], "max": [1, 2, 64, 16]}
PROFILES = {
    "input_ids": {"min": [1, 1], "opt": [1, 8], "max": [1, 64]},
    "attention_mask": {"min": [1, 1], "opt": [1, 16], "max": [1, 128]},
    "past_key_values.*": PAST,
}
CONFIG = {"backend": "rtx", "targets": ["sm86"], "profiles": PROFILES}
WORDS = ArrayDataset({"input_ids": TOKENS[:, :24]}, ("input_ids",))


def graph_of(parent, folder):
    exported(parent, folder, {**FIELDS, "decoder": {"target": "portable"}})
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="onnx"))


def built(parent, out, **fields):
    out.mkdir()
    config = TensorRTConfig.model_validate_json(json.dumps({**CONFIG, **fields}))
    context = context_of(WORDS, out)
    TensorRT().requires(config, parent, context)
    return TensorRT().run(config, parent, out, context), checked_engine_manifest(out)


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4v"])
def test_a_decoder_becomes_an_engine_in_half_precision(preset, tmp_path):
    graph = graph_of(parent_in(tmp_path / "torch", preset), tmp_path / "onnx")
    calibration = {"data": "some", "num_samples": 2, "batch_size": 1}
    output, manifest = built(graph, tmp_path / "engine", precision="fp16", calibration=calibration)
    assert output.summary["against_parent"]["cosine"] > 0.999
    names = {one.name for one in (*manifest.inputs, *manifest.outputs)}
    assert {
        "input_ids",
        "attention_mask",
        "past_key_values.0.key",
        "present.2.value",
        "logits",
    } <= names
    assert "logits_to_keep" not in names, "an engine is fed all that it takes"
    assert manifest.profiles["past_key_values.2.value"] == Profile.model_validate_json(
        json.dumps(PAST)
    )


def test_the_integers_of_awq_reach_the_engine(tmp_path):
    small = awq(
        parent_in(tmp_path / "torch", "tiny-llama"),
        tmp_path / "p",
        format="compressed-tensors",
        symmetric=True,
    )
    graph = graph_of(small, tmp_path / "onnx")
    calibration = {"data": "some", "num_samples": 2, "batch_size": 1}
    output, manifest = built(graph, tmp_path / "engine", precision="int4", calibration=calibration)
    assert output.summary["against_parent"]["cosine"] > 0.999
    assert manifest.engines[0].bytes > 0


def test_zero_points_are_refused_with_what_to_do(tmp_path):
    small = awq(parent_in(tmp_path / "torch", "tiny-llama"), tmp_path / "packed")
    graph = graph_of(small, tmp_path / "onnx")
    with pytest.raises(RequirementError) as caught:
        built(graph, tmp_path / "engine", precision="int4", floats="fp32")
    assert "UINT4 integers" in caught.value.what
    assert "symmetric: true" in caught.value.remedy


def test_a_profile_of_a_pattern_is_that_of_all_that_fit():
    inputs = [SimpleNamespace(name=name) for name in ("ids", "past.0.key", "past.1.key")]
    one, other = Profile(min=(1,), opt=(1,), max=(1,)), Profile(min=(2,), opt=(2,), max=(2,))
    found = by_input({"past.*": one, "past.1.key": other, "gone.*": one}, inputs)
    assert found == {"past.0.key": one, "past.1.key": other, "gone.*": one}


def test_samples_are_longer_than_the_profile_allows(tmp_path):
    graph = graph_of(parent_in(tmp_path / "torch", "tiny-llama"), tmp_path / "onnx")
    short = {**PROFILES, "input_ids": {"min": [1, 1], "opt": [1, 8], "max": [1, 16]}}
    with pytest.raises(
        RequirementError,
        match="profile input_ids: dimension 1 is from 1 to 16, and 24 in the samples",
    ):
        built(
            graph,
            tmp_path / "e",
            precision="fp16",
            profiles=short,
            calibration={"data": "some", "num_samples": 1},
        )
