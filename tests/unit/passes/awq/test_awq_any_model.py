"""Classes of transformers without a table: packed better than to nearest, and loaded by it."""

import json

import numpy as np
import pytest
import torch
import transformers

from calibration.sources.arrays import ArrayDataset
from compressor.errors import RequirementError
from compressor.models.checkpoint.loading import load_module
from tests.support.awq import COMPRESSED_TENSORS, NEAREST, artifact, run_awq
from tests.support.decoder_classes import build_decoder

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(3, 300, (24, 24))
HELD_OUT = torch.from_numpy(RANDOM.integers(3, 300, (4, 24)))
FIELDS = {**COMPRESSED_TENSORS, "symmetric": True}


def pack(parent, folder, inputs, **fields):
    data = ArrayDataset(inputs, tuple(inputs))
    return run_awq(artifact(parent), folder, {**FIELDS, **fields}, text=data)


def log_probabilities(module):
    with torch.inference_mode():
        return module(input_ids=HELD_OUT)["logits"].float().log_softmax(-1)


def divergence(module, expected):
    return float((expected.exp() * (expected - log_probabilities(module))).sum(-1).mean())


@pytest.mark.parametrize("name", ["phi", "opt", "gpt_neox", "mixtral", "gemma4_text"])
def test_decoders_are_packed_better_than_to_nearest(name, tmp_path):
    model = build_decoder(name)
    model.save_pretrained(tmp_path / "parent")
    expected, divergences = log_probabilities(model), {}
    for method, fields in (("nearest", NEAREST), ("searched", {})):
        out, output = pack(tmp_path / "parent", tmp_path / method, {"input_ids": TOKENS}, **fields)
        divergences[method] = divergence(load_module(out), expected)
    assert divergences["searched"] < divergences["nearest"]
    assert any(row["scale_exponent"] for row in output.summary["layers"])
    by_transformers = type(model).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(by_transformers, log_probabilities(load_module(out))) < 1e-3


def test_a_vision_encoder_is_packed_as_a_whole(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "parent")
    pixels = RANDOM.normal(size=(24, 3, 32, 32)).astype(np.float32)
    out, output = pack(tmp_path / "parent", tmp_path, {"pixel_values": pixels})
    assert output.summary["kept_float"] == [
        {"linear": "classifier", "why": "128 weights are too few to win anything"}
    ]
    by_transformers = type(model).from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        images = torch.from_numpy(pixels[:4])
        first, second = (
            module(pixel_values=images)["logits"] for module in (by_transformers, load_module(out))
        )
    assert torch.allclose(first, second, atol=1e-5)


def test_a_layer_that_the_group_size_does_not_divide_has_smaller_groups(tmp_path):
    build_decoder("phi").save_pretrained(tmp_path / "parent")
    out, output = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, group_size=64)
    reasons = {row["linear"]: row["why"] for row in output.summary["smaller_groups"]}
    assert reasons["model.layers.0.mlp.fc2"] == "96 inputs are no multiple of the group size 64"
    assert load_module(out) is not None


def test_transformers_loads_a_class_that_initializes_packed_layers(tmp_path):
    model = build_decoder("gpt_bigcode")
    model.save_pretrained(tmp_path / "parent")
    out, _ = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, group_size=64, **NEAREST)
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    assert quantization["dequantize"]
    by_transformers = type(model).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(by_transformers, log_probabilities(load_module(out))) < 1e-5


def test_zero_points_of_a_class_without_a_table_are_loaded_by_transformers(tmp_path):
    model = build_decoder("phi")
    model.save_pretrained(tmp_path / "parent")
    fields = {**NEAREST, "symmetric": False}
    out, _ = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, **fields)
    by_transformers = type(model).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(by_transformers, log_probabilities(load_module(out))) < 1e-5


def test_experts_share_the_group_size_that_all_their_inputs_have(tmp_path):
    model = build_decoder("qwen3_moe")
    model.save_pretrained(tmp_path / "parent")
    out, output = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, **NEAREST)
    reasons = {row["linear"]: row["why"] for row in output.summary["smaller_groups"]}
    assert all(".experts." in name for name in reasons)
    experts = "model.layers.0.mlp.experts.0"
    assert reasons[f"{experts}.down_proj"] == "48 inputs are no multiple of the group size 32"
    assert "read together" in reasons[f"{experts}.up_proj"]
    by_transformers = type(model).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(by_transformers, log_probabilities(load_module(out))) < 1e-5


def test_matrices_that_are_no_linear_layers_are_refused_by_name(tmp_path):
    build_decoder("gpt2").save_pretrained(tmp_path / "parent")
    with pytest.raises(RequirementError, match=r"h\.0\.mlp\.c_fc: packed .* this is Conv1D"):
        pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS})
