"""Checkpoints of transformers: layouts compared with the library's classes, and damaged folders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.layouts import LAYOUTS

FAMILY = Transformers()


def save_preset(preset, folder, seed=0, companions=None):
    torch.manual_seed(seed)
    config = FAMILY.presets[preset]
    module = FAMILY.build(config).eval()
    FAMILY.save(module, config, folder, companions)
    return module


def logits(module):
    return module(input_ids=torch.arange(3, 15).reshape(2, 6))["logits"]


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_parameters_and_macs_equal_those_of_the_class(preset):
    config = FAMILY.presets[preset]
    module = FAMILY.build(config)
    weights = {weight.data_ptr(): weight.numel() for weight in module.parameters()}
    assert sum(FAMILY.parameters(config).values()) == sum(weights.values())
    layers = module.get_submodule(LAYOUTS[config.model_type].layers_name)
    linears = [layer for layer in layers.modules() if isinstance(layer, torch.nn.Linear)]
    matrices = sum(linear.weight.numel() for linear in linears)
    assert FAMILY.macs(config) == matrices + module.lm_head.weight.numel()


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "glm4"])
def test_absent_fields_have_the_defaults_of_transformers(model_type):
    sizes = {
        "hidden_size": 96,
        "num_attention_heads": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 16,
        "pad_token_id": None,
    }
    name = {"glm4": "Glm4"}.get(model_type, model_type.capitalize())
    config = FAMILY.Config(model_type=model_type, architectures=(f"{name}ForCausalLM",), **sizes)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    weights = {id(weight): weight.numel() for weight in module.parameters()}
    assert sum(FAMILY.parameters(config).values()) == sum(weights.values())


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_transformers_loads_what_is_saved_and_bytes_are_reproducible(preset, tmp_path):
    module = save_preset(preset, tmp_path / "a")
    assert torch.equal(logits(module), logits(load_module(tmp_path / "a")))
    reference = type(module).from_pretrained(tmp_path / "a")
    assert torch.equal(logits(module), logits(reference))
    save_preset(preset, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert facts_of(tmp_path / "a").parameters == sum(
        FAMILY.parameters(FAMILY.presets[preset]).values()
    )


def test_other_files_are_copied_and_weights_keep_their_dtype(tmp_path):
    parent = tmp_path / "parent"
    save_preset("tiny-llama", parent)
    (parent / "tokenizer.json").write_text("{}")
    tree = json.loads((parent / "config.json").read_text()) | {"dtype": "bfloat16", "_name": "kept"}
    (parent / "config.json").write_text(json.dumps(tree))
    config = read_description(parent).config
    FAMILY.save(load_module(parent), config, tmp_path / "child", parent)
    assert (tmp_path / "child" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "child" / "config.json").read_text())["_name"] == "kept"
    assert {
        tensor.dtype for tensor in load_file(tmp_path / "child" / "model.safetensors").values()
    } == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_module(tmp_path / "child").parameters()} == {
        torch.bfloat16
    }


def save_shards(folder):
    module = save_preset("tiny-llama", folder / "whole")
    module.save_pretrained(folder / "shards", max_shard_size="100KB")
    (folder / "shards" / "config.json").write_bytes((folder / "whole" / "config.json").read_bytes())
    return module, folder / "shards"


def test_shards_are_loaded(tmp_path):
    module, folder = save_shards(tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(module), logits(load_module(folder)))


def test_every_problem_of_shards_is_reported_at_once(tmp_path):
    _, folder = save_shards(tmp_path)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    with pytest.raises(ModelError) as raised:
        read_description(folder)
    assert f"{first.name}: truncated" in raised.value.what
    assert f"{second.name} is missing" in raised.value.what


def test_an_index_that_differs_from_the_shards_is_refused(tmp_path):
    _, folder = save_shards(tmp_path)
    index = folder / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    names = sorted(tree["weight_map"])
    tree["weight_map"][names[0]], tree["weight_map"][names[-1]] = (
        tree["weight_map"][names[-1]],
        "../x.safetensors",
    )
    index.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"differ in|outside the folder"):
        read_description(folder)
    del tree["metadata"]
    index.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="no `metadata`"):
        read_description(folder)
    index.write_text("[]")
    with pytest.raises(ModelError, match="no index of shards"):
        read_description(folder)


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    save_preset("tiny-llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)
    tensors["more"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as raised:
        load_module(tmp_path)
    for part in (
        "missing: model.layers.0.mlp.up_proj",
        "unexpected: more",
        "model.layers.1.mlp.up_proj.weight: [2, 2]",
    ):
        assert part in raised.value.what


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'bert' is not one of llama"),
        ({"architectures": ["LlamaForCausalLM", "X"]}, "name one class"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantized by 'gptq'; supported: awq, compressed-tensors",
        ),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ({"hidden_size": "64"}, "hidden_size"),
    ],
)
def test_an_unsupported_config_is_refused(change, message, tmp_path):
    save_preset("tiny-llama", tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=message):
        read_description(tmp_path)


def test_an_architecture_that_is_no_model_class_is_refused(tmp_path):
    save_preset("tiny-llama", tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text()) | {
        "architectures": ["PreTrainedConfig"]
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="no model class of transformers"):
        load_module(tmp_path)
