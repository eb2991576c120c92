"""Packed mixtures in the names of the float checkpoint, read by us and by transformers."""

import json
import logging

import pytest
import safetensors.torch
import torch
import transformers

from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.checkpoint import Checkpoint
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.experts.split import join_experts, split_experts
from compressor.models.families.transformers.file_names import FileNames
from tests.support.mixtures import MIXTURES, VISION_MIXTURES, mixture, vision_mixture
from tests.support.packed_mixtures import write_packed

TOKENS = torch.tensor([[5, 9, 2, 77, 31, 8, 60, 4], [90, 3, 3, 12, 55, 41, 7, 19]])
LOADED_BY_TRANSFORMERS = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "Llama4ForCausalLM")
NOT_LOADED = ("GraniteMoeForCausalLM", "GptOssForCausalLM")
VISION_LOADED = ("Glm4vMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")


@pytest.fixture
def errors_logged():
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_packed_mixture_is_read_as_the_model_that_it_was_written_from(name, tmp_path):
    model = mixture(name)
    layers = write_packed(model, tmp_path)
    assert any("experts.0." in layer for layer in layers)
    join_experts(model)
    tree = json.loads((tmp_path / "config.json").read_bytes())
    loaded = Checkpoint(tmp_path, tree).load_all().state_dict()
    expected = model.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("name", VISION_MIXTURES)
def test_experts_of_vision_language_classes_have_their_full_names(name, tmp_path, errors_logged):
    pytest.importorskip("compressed_tensors")
    model = vision_mixture(name)
    layers = write_packed(model, tmp_path)
    prefix = "model.layers" if "Ernie" in name else "model.language_model.layers"
    for projection in ("gate_proj", "up_proj", "down_proj"):
        assert f"{prefix}.1.mlp.experts.3.{projection}" in layers
    assert all(layer.startswith(("model.", "lm_head")) for layer in layers)
    join_experts(model)
    tree = json.loads((tmp_path / "config.json").read_bytes())
    loaded = Checkpoint(tmp_path, tree).load_all().state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key
    names = _file_names(vision_mixture(name), tmp_path / "float")
    assert bool(names.experts_unknown_to_transformers()) == (name not in VISION_LOADED)
    try:
        _, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    except RuntimeError:
        assert name not in VISION_LOADED
    else:
        assert bool(info["missing_keys"]) == (name not in VISION_LOADED)


def test_matrices_that_are_stored_transposed_are_not_taken_for_rows_of_the_files():
    model = vision_mixture("Qwen3VLMoeForConditionalGeneration")
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    stored = {name: tuple(model.state_dict()[name].mT.shape)}
    conversions = Conversions(model, stored)
    assert conversions.shapes(stored) == {name: model.state_dict()[name].shape}
    assert conversions.origins(name, stored) is None


OTHERS = {
    "BertForSequenceClassification": transformers.BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    ),
    "ViTForImageClassification": transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=16,
    ),
    "LlavaForConditionalGeneration": transformers.LlavaConfig(
        text_config={"model_type": "qwen2", "vocab_size": 96, "hidden_size": 32,
                     "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32,
                       "intermediate_size": 48, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "image_size": 32, "patch_size": 16,
                       "projection_dim": 32},
        image_token_index=95,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_packed_model_of_any_class_is_opened_by_its_headers_and_read(name, tmp_path):
    torch.manual_seed(0)
    model = getattr(transformers, name)(OTHERS[name]).eval()
    assert len(write_packed(model, tmp_path)) > 8
    description = read_description(tmp_path)
    assert not description.notes
    loaded = load_module(description).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_single_experts_have_the_names_of_the_float_files(tmp_path):
    layers = write_packed(mixture("MixtralForCausalLM"), tmp_path)
    start = "model.layers.1.block_sparse_moe.experts.3"
    assert {f"{start}.w1", f"{start}.w2", f"{start}.w3"} <= {*layers}
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored[f"{start}.w1.weight_shape"].tolist() == [64, 32]
    assert "model.layers.1.block_sparse_moe.gate.weight" in stored


def test_experts_that_are_stored_fused_get_names_of_their_own(tmp_path):
    layers = write_packed(mixture("GptOssForCausalLM"), tmp_path)
    assert "model.layers.0.mlp.experts.2.gate_proj" in layers
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.0.mlp.experts.2.down_proj.bias"].shape == (32,)


@pytest.mark.parametrize("name", [*LOADED_BY_TRANSFORMERS, *NOT_LOADED])
def test_classes_that_from_pretrained_fills_from_packed_experts(name, tmp_path, errors_logged):
    pytest.importorskip("compressed_tensors")
    model = mixture(name)
    write_packed(model, tmp_path)
    names = _file_names(mixture(name), tmp_path / "float")
    assert bool(names.experts_unknown_to_transformers()) == (name in NOT_LOADED)
    loaded, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert bool(info["missing_keys"]) == (name in NOT_LOADED)
    if name in NOT_LOADED:
        return
    with torch.no_grad():
        result, expected = (m(input_ids=TOKENS).logits for m in (loaded.eval(), model))
    # transformers unpacks to bfloat16
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()


def _file_names(model, folder):
    stored = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    conversions = Conversions(model, shapes)
    split_experts(model)
    return FileNames(model, conversions, shapes)


def test_a_missing_expert_is_named(tmp_path):
    write_packed(mixture("GraniteMoeForCausalLM"), tmp_path)
    _remove(tmp_path, "model.layers.0.block_sparse_moe.experts.1.up_proj.")
    with pytest.raises(ModelError, match=r"experts lacks model\S+experts\.1\.up_proj\.weight"):
        read_description(tmp_path)


def _remove(folder, prefix):
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {key: value for key, value in stored.items() if not key.startswith(prefix)}
    assert len(kept) < len(stored)
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_a_packed_weight_of_another_shape_is_named(tmp_path):
    write_packed(mixture("Qwen3MoeForCausalLM"), tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    layer = "model.layers.0.mlp.experts.1.up_proj"
    stored[f"{layer}.weight_scale"] = stored[f"{layer}.weight_scale"][:, :1].contiguous()
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight_scale: \[32, 1\] in the file, \[32, 2\]"):
        read_description(tmp_path)
