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
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.headers import canonical_names
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.families.transformers.modules import build_on_meta
from tests.support.awq import AUTOAWQ, artifact, run_awq
from tests.support.checkpoints import stored_checkpoint, write_sparse_checkpoint
from tests.support.cli import cli

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
        "hidden_size": 128,
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
    with pytest.raises(ModelError, match="is a list, expected an object"):
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
        ({"model_type": "nobody"}, "`model_type` 'nobody' is not known to transformers"),
        ({"model_type": "bert", "architectures": ["BertForNothing"]}, "is no model class"),
        ({"model_type": "bert", "architectures": []}, "name one class of transformers, not 0"),
        ({"architectures": ["LlamaForCausalLM", "X"]}, "name one class of transformers, not 2"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantized by 'gptq'; supported: awq, compressed-tensors",
        ),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"layer_types": 3}, "`layer_types` is 3, expected a list"),
        ({"layer_types": [1, 2, 3]}, "expected a name at each place of the list"),
        ({"quantization_config": [1]}, "`quantization_config` is no mapping"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000, expected at most"),
        ({"dtype": "int8"}, "`dtype` is 'int8', expected one of float32"),
    ],
)
def test_an_unsupported_config_is_refused(change, message, tmp_path):
    save_preset("tiny-llama", tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=message):
        read_description(tmp_path)


def test_what_is_no_model_class_of_transformers_is_refused(tmp_path):
    save_preset("tiny-llama", tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text()) | {
        "architectures": ["PreTrainedConfig"]
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="'PreTrainedConfig', which is no model class"):
        read_description(tmp_path)


@pytest.mark.parametrize("preset", FAMILY.presets)
@pytest.mark.parametrize("tied", [False, True])
def test_expected_tensors_are_those_of_the_class(preset, tied):
    tree = {**FAMILY.presets[preset].tree, "tie_word_embeddings": tied}
    module = build_on_meta(tree)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    assert expected_shapes(tree) == shapes


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_headers_are_named_by_the_rules_of_transformers_loader(preset):
    """The names that the plan derives without torch equal those of the library's mapping."""
    module = build_on_meta(FAMILY.presets[preset].tree)
    names = [name for name, _ in module.named_parameters()]
    stored = [*names[::2], *(name.removeprefix("model.") for name in names[1::2])]
    tree = FAMILY.presets[preset].tree
    conversions = Conversions(module, stored)
    assert not conversions.unexpected
    canonical, _ = canonical_names(tree, dict.fromkeys(stored))
    assert {conversions.renamed(name): name for name in conversions.targets} == {
        stored_name: name for name, stored_name in canonical.items()
    }
    assert not module._keys_to_ignore_on_load_unexpected


def test_a_head_that_differs_from_the_tied_embedding_is_used_and_reported(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    stored.tensors["lm_head.weight"] = stored.tensors[stored.embedding] + 1
    description = read_description(stored.write(tmp_path / "parent"))
    assert "differ, although config.json ties them" in description.notes[0]
    FAMILY.save(load_module(description), description.config, tmp_path / "child")
    tree = json.loads((tmp_path / "child" / "config.json").read_text())
    assert tree["tie_word_embeddings"] is False
    child = load_file(tmp_path / "child" / "model.safetensors")
    assert torch.equal(child["lm_head.weight"], stored.tensors["lm_head.weight"])


def test_a_missing_head_names_the_flag_that_would_tie_it(tmp_path):
    stored = stored_checkpoint("tiny-mistral")
    del stored.tensors["lm_head.weight"]
    with pytest.raises(ModelError, match=r'lm_head.weight is in no file.*"tie_word_embeddings"'):
        read_description(stored.write(tmp_path))


@pytest.mark.parametrize("preset", FAMILY.presets)
@pytest.mark.parametrize("field", ["pad_token_id", "eos_token_id", "bos_token_id"])
def test_special_tokens_beyond_the_vocabulary_are_refused(preset, field):
    tree = FAMILY.presets[preset].tree
    text = tree.get("text_config") or tree
    text[field] = text["vocab_size"]
    with pytest.raises(ValueError, match=f"{field}` is 512, and the vocabulary has 512 tokens"):
        FAMILY.Config.model_validate_json(json.dumps(tree))


def test_a_model_of_nine_billion_parameters_is_described_from_headers_alone(tmp_path):
    tree = {
        **FAMILY.presets["tiny-glm4"].tree,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "head_dim": 128,
        "vocab_size": 151552,
        "dtype": "bfloat16",
    }
    write_sparse_checkpoint(tree, tmp_path)
    description = read_description(tmp_path)
    assert sum(FAMILY.parameters(description.config).values()) > 9e9


def test_plan_and_show_name_the_weights_that_count(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    stored.tensors["lm_head.weight"] = stored.tensors[stored.embedding] + 1
    stored.other_files["pytorch_model.bin"] = b"not read"
    stored.write(tmp_path / "model")
    file = tmp_path / "pipeline.yaml"
    file.write_text("version: 1\nname: a\nmodel: {path: model, measure: false}\npasses: []\n")
    for command in (("plan", file), ("show", tmp_path / "model")):
        output = " ".join(cli(*command, cwd=tmp_path).stdout.split())
        assert "model.safetensors counts; not read: pytorch_model.bin" in output
        assert "differ, although config.json ties them" in output


@pytest.mark.parametrize("field", ["text_config", "vision_config"])
def test_a_part_of_the_config_that_is_no_mapping_is_refused(field):
    tree = FAMILY.presets["tiny-glm4v"].tree | {field: "x"}
    with pytest.raises(ValueError, match=f"`{field}` is 'x', expected a mapping"):
        FAMILY.Config.model_validate_json(json.dumps(tree))


def test_a_flag_of_a_tied_head_among_the_fields_of_the_language_model_counts(tmp_path):
    stored = stored_checkpoint("tiny-glm4v")
    stored.tree["text_config"]["tie_word_embeddings"] = True
    stored.tensors.pop("lm_head.weight")
    description = read_description(stored.write(tmp_path))
    module = load_module(description)
    assert module.lm_head.weight is module.model.language_model.embed_tokens.weight
    assert description.config.tree["tie_word_embeddings"] is True
    assert "tie_word_embeddings" not in description.config.tree["text_config"]


def test_options_of_a_call_do_not_change_the_module(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    stored.tree |= {"attn_implementation": "flash_attention_2", "return_dict": False}
    module = load_module(stored.write(tmp_path))
    assert module(torch.ones(1, 4, dtype=torch.long)).logits.shape == (1, 4, 512)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(value, tmp_path):
    folder = stored_checkpoint("tiny-llama").write(tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(f'{text[:-1]}, "rope_theta": {value}}}')
    with pytest.raises(ModelError, match=f"it contains {value}") as refused:
        read_description(folder)
    assert "correct config.json" in refused.value.remedy


def test_float64_without_a_dtype_is_refused_with_a_remedy_that_works(tmp_path):
    stored = stored_checkpoint("tiny-llama")
    stored.tensors = {name: value.double() for name, value in stored.tensors.items()}
    with pytest.raises(ModelError, match='set "dtype": "float32"'):
        read_description(stored.write(tmp_path / "double"))
    stored.tree["dtype"] = "float32"
    module = load_module(stored.write(tmp_path / "named"))
    assert {value.dtype for value in module.parameters()} == {torch.float32}


@pytest.fixture(params=["awq", "compressed-tensors"])
def packed(request, tmp_path):
    save_preset("tiny-llama", tmp_path / "parent")
    fields = {**AUTOAWQ, "format": request.param, "refine": "none"}
    return run_awq(artifact(tmp_path / "parent"), tmp_path, fields)[0]


def rewrite_packed(folder, change):
    """Write the tensors of a packed checkpoint into one file after a change."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop_scales(tensors):
    del tensors[next(name for name in tensors if name.endswith(("scales", "weight_scale")))]


def misshape(tensors):
    name = next(name for name in tensors if name.endswith(("qweight", "weight_packed")))
    tensors[name] = tensors[name][1:].clone()


def order_activations(tensors):
    layer = next(name for name in tensors if name.endswith(("qweight", "weight_packed")))
    tensors[f"{layer.rpartition('.')[0]}.weight_g_idx"] = torch.zeros(64, dtype=torch.int32)


def unpack(tensors):
    packed_suffixes = ("qweight", "qzeros", "scales", "packed", "scale", "zero_point", "shape")
    for name in [name for name in tensors if name.endswith(packed_suffixes)]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_scales, "missing: model.layers"),
        (misshape, r"in the file, .* for 4 bits in groups of 32"),
        (order_activations, r"unexpected: .*weight_g_idx"),
        (unpack, "no layer is packed; remove it from config.json"),
    ],
)
def test_packed_layers_that_do_not_fit_are_refused_from_headers(packed, change, message):
    read_description(packed)
    rewrite_packed(packed, change)
    with pytest.raises(ModelError, match=message):
        read_description(packed)


def test_a_group_size_that_is_not_that_of_the_tensors_is_refused(packed):
    text = (packed / "config.json").read_text()
    (packed / "config.json").write_text(text.replace('"group_size": 32', '"group_size": 16'))
    with pytest.raises(ModelError, match="for 4 bits in groups of 16"):
        read_description(packed)
