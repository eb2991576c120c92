"""Classes of transformers without a table: packed better than to nearest, and loaded by it."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from calibration.sources.arrays import ArrayDataset
from compressor.errors import RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from compressor.models.families.transformers.packed_loading import loading_fields
from passes.awq.config import AwqConfig
from passes.awq.linear_layers import other_matrices
from passes.awq.quantizers import quantizer_from_facts
from tests.support.awq import COMPRESSED_TENSORS, NEAREST, artifact, run_awq
from tests.support.decoder_classes import build_decoder
from tests.support.encoder_classes import CLASSES
from tests.support.further_encoder_classes import FURTHER_CLASSES

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


def _gpt2(folder):
    """Save a GPT-2 whose `mlp.c_fc` and `mlp.c_proj` are too small to be packed."""
    sizes = {"vocab_size": 320, "n_embd": 32, "n_inner": 24, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(**sizes, n_positions=32, **ends)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("format_", ["awq", "compressed-tensors"])
def test_conv1d_is_packed_as_a_linear_layer_of_the_same_function(format_, tmp_path):
    model = _gpt2(tmp_path / "parent")
    expected, divergences = log_probabilities(model), {}
    for method, fields in (("nearest", NEAREST), ("searched", {})):
        fields = {**fields, "symmetric": False, "format": format_, "group_size": 16}
        out, _ = pack(tmp_path / "parent", tmp_path / method, {"input_ids": TOKENS}, **fields)
        divergences[method] = divergence(load_module(out), expected)
    assert divergences["searched"] < divergences["nearest"] < 0.01
    tensors = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    suffix, shape = ("qweight", (32, 96 // 8)) if format_ == "awq" else ("weight_packed", (96, 4))
    assert tensors[f"transformer.h.0.attn.c_attn.{suffix}"].shape == shape
    small = "transformer.h.1.mlp.c_fc.weight"
    original = model.state_dict()[small]
    assert tensors[small].shape == original.shape  # not packed: as GPT-2 stores it


def test_a_run_on_conv1d_notes_that_transformers_does_not_load_it(tmp_path):
    _gpt2(tmp_path / "parent")
    out, _ = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, **NEAREST, group_size=16)
    tree = json.loads((out / "config.json").read_text())
    assert "transformer.h.0.attn.c_attn" in tree["quantization_config"]["transposed_layers"]
    _, [note] = loading_fields(tree, tree["quantization_config"])
    assert "leaves random weights in the Conv1D layers" in note


@pytest.mark.parametrize("name", ["OpenAIGPTLMHeadModel", "GPT2ForSequenceClassification"])
def test_conv1d_of_models_that_are_loaded_as_a_whole_is_packed(name, tmp_path):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    sizes = {"vocab_size": 320, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = model_class(model_class.config_class(**sizes, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path / "parent")
    fields = {"group_size": 16, "symmetric": False, "bits": 8}
    out, output = pack(tmp_path / "parent", tmp_path, {"input_ids": TOKENS}, **fields)
    assert len(output.summary["layers"]) == 2 * 4
    tree = json.loads((out / "config.json").read_text())
    assert "transformer.h.0.attn.c_attn" in tree["quantization_config"]["transposed_layers"]
    with torch.inference_mode():
        expected, packed = (m(input_ids=HELD_OUT)["logits"] for m in (model, load_module(out)))
    assert float((packed - expected).norm()) < 0.02 * float(expected.norm())


def test_matrices_that_are_no_linear_layers_are_named():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4, 8))

    module = torch.nn.ModuleDict({"mixing": Mixing(), "linear": torch.nn.Linear(4, 8)})
    reason = "packed formats hold torch.nn.Linear alone, and this is Mixing"
    assert other_matrices(module) == {"mixing": reason}


def test_a_source_that_is_packed_already_is_divided_wherever_it_is(tmp_path):
    """Funnel's layers are in nested lists: its linear layers are sites of the whole model."""
    model = FURTHER_CLASSES["funnel"].build()
    model.save_pretrained(tmp_path / "parent")
    tokens = {"input_ids": TOKENS % 90 + 4}
    changes = {}
    for scaling in (False, True):
        fields = {**NEAREST, "scaling": scaling, "bits": 8, "group_size": 16}
        out, output = pack(tmp_path / "parent", tmp_path / f"{scaling}", tokens, **fields)
        inputs = torch.from_numpy(tokens["input_ids"])
        with torch.inference_mode():
            expected, packed = (
                module(input_ids=inputs)["logits"] for module in (model, load_module(out))
            )
        changes[scaling] = float((packed - expected).norm() / expected.norm())
    scaled = {row["linear"] for row in output.summary["layers"] if row["scale_exponent"]}
    assert any("post_proj" in name for name in scaled)
    assert changes[True] < 2 * changes[False]


def test_a_layer_that_very_few_positions_reach_is_rounded_to_nearest(tmp_path):
    FURTHER_CLASSES["deberta"].build().save_pretrained(tmp_path / "parent")
    tokens = {"input_ids": TOKENS[:3] % 90 + 4, "attention_mask": np.ones_like(TOKENS[:3])}
    calibration = {"data": "text", "num_samples": 3}
    fields = {"calibration": calibration, "group_size": 16}
    _, output = pack(tmp_path / "parent", tmp_path, tokens, **fields)
    nearest = {row["linear"]: row["tokens"] for row in output.summary["rounded_to_nearest"]}
    assert nearest["pooler.dense"] == 3  # it reads the first token of each sample
    assert not any("encoder.layer.0." in name for name in nearest)


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("resnet", {}, "no linear layer of this transformers model can be quantized"),
        ("vit", {"group_size": 7}, "no linear layer"),
        ("convnext", {"min_share": 0.9}, "`min_share` requires 90%"),
    ],
)
def test_plan_refuses_classes_with_too_little_to_pack(name, fields, problem, tmp_path):
    CLASSES[name].build().save_pretrained(tmp_path)
    tree = {"calibration": {"data": "text"}, "group_size": 16, **FIELDS, **fields}
    facts = facts_of(tmp_path)
    quantizer = quantizer_from_facts(AwqConfig.model_validate_json(json.dumps(tree)), facts)
    with pytest.raises(RequirementError, match=problem):
        quantizer.check_planned(facts)
