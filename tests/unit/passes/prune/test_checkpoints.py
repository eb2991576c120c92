"""Checkpoints of transformers pruned from the command line; transformers loads the results."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, Glm4vForConditionalGeneration

from compressor.models.facts import facts_of
from tests.support.cli import cli
from tests.support.tiny_models import CHECKPOINT

WORDS = [f"w{number}" for number in range(480)]
PIPELINE = """\
version: 1
name: checkpoint
threads: 1
model: {family: transformers, preset: PRESET, measure: false}
data:
  text: {source: text, path: text.txt, tokenizer: ., sequence_length: 16}
passes:
  - {type: prune, name: smaller, TARGET, calibration: text, num_samples: 12, batch_size: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("checkpoints")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(home / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 480, (400,), generator=generator).tolist()
    (home / "text.txt").write_text(" ".join(WORDS[index] for index in indices))
    return home


def run_pipeline(home, preset, target):
    """Return the process, and the store's folder."""
    file = home / f"{preset}.yaml"
    file.write_text(PIPELINE.replace("PRESET", preset).replace("TARGET", target))
    store = home / f"store-{preset}-{abs(hash(target))}"
    return cli("run", file, "-o", store), store


def prune(home, preset, target):
    process, store = run_pipeline(home, preset, target)
    assert process.returncode == 0, process.stderr
    return next(store.glob("prune-*"))


def config_of(folder):
    tree = json.loads((folder / "model" / "config.json").read_text())
    return tree.get("text_config", tree) | {"vision_config": tree.get("vision_config")}


def test_every_axis_of_a_decoder_is_cut_and_transformers_loads_the_result(home):
    target = "target: {dimensions: {layers: 2, hidden: 48, ffn: 64, heads: 2}}"
    folder = prune(home, "tiny-qwen3", target)
    config = config_of(folder)
    names = ("hidden_layers", "attention_heads", "key_value_heads")
    assert [config[f"num_{name}"] for name in names] == [2, 2, 1]
    assert (config["hidden_size"], config["intermediate_size"], config["head_dim"]) == (48, 64, 16)
    assert config["layer_types"] == ["full_attention"] * 2
    module = AutoModelForCausalLM.from_pretrained(folder / "model")
    count = sum(weight.numel() for weight in module.parameters())
    assert count == facts_of(folder / "model").parameters
    tokens = module.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 7)


def test_every_axis_of_glm4v_is_cut_and_images_still_count(home):
    target = "target: {dimensions: {layers: 2, hidden: 96, heads: 6, ffn: 64}}"
    folder = prune(home, "tiny-glm4v", target)
    config = config_of(folder)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    assert [config[name] for name in names] == [96, 6, 2]
    assert config["vision_config"]["out_hidden_size"] == 96
    assert config["rope_parameters"]["mrope_section"] == [2, 1, 1]
    module, info = Glm4vForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    patches = (16, 3 * 2 * 14 * 14)
    inputs = {
        "input_ids": torch.tensor([[1, 502, 500, 500, 500, 500, 503, 2]]),
        "attention_mask": torch.ones(1, 8, dtype=torch.int64),
        "mm_token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]),
        "pixel_values": torch.randn(patches, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    with_image = module(**inputs)["logits"]
    blank = module(**inputs | {"pixel_values": torch.zeros(patches)})["logits"]
    assert with_image.isfinite().all()
    assert not torch.allclose(with_image, blank)
    assert module.generate(**inputs, max_new_tokens=3, do_sample=False).shape == (1, 11)


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4"])
def test_a_target_is_met_over_all_axes(home, preset):
    folder = prune(
        home, preset, "target: {params: 60%}, axes: [layers, hidden, ffn, heads], min_keep: 0.3"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = {row["field"]: row for row in manifest["summary"]["cuts"]}
    assert rows["parameters"]["after"] <= 0.6 * rows["parameters"]["before"]
    module = AutoModelForCausalLM.from_pretrained(folder / "model")
    weights = {weight.data_ptr(): weight.numel() for weight in module.parameters()}
    assert sum(weights.values()) == rows["parameters"]["after"]


def test_a_checkpoint_outside_the_store_can_be_previewed(home, tmp_path):
    config = CHECKPOINT.presets["tiny-glm4"]
    CHECKPOINT.save(CHECKPOINT.build(config), config, tmp_path / "model")
    fields = ["--set", "importance=magnitude", "--set", "target.dimensions.ffn=64"]
    options = ["--dry-run", "--json", "-o", tmp_path / "store"]
    process = cli("pass", "prune", tmp_path / "model", *fields, *options)
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)["decisions"]
    assert {row["after"] for row in rows if row["field"] == "ffn"} == {64}
    assert not list(tmp_path.glob("store/*-*"))


@pytest.mark.parametrize(
    ("preset", "target", "code", "message"),
    [
        (
            "tiny-glm4v",
            "target: {dimensions: {hidden: 96, heads: 4}}",
            2,
            "they shrink together",
        ),
        (
            "tiny-glm4v",
            "target: {dimensions: {heads: 5}}",
            2,
            "heads: 5 is not between 2 and 8, in steps of 2",
        ),
        (
            "tiny-llama",
            "target: {dimensions: {heads: 3}}",
            2,
            "heads: 3 is not between 2 and 4, in steps of 2",
        ),
        (
            "tiny-llama",
            "target: {dimensions: {hidden: 47}}",
            2,
            "do not fit together: hidden_size 47 is no multiple of 4",
        ),
        ("tiny-llama", "target: {params: 1%}", 1, "no further cut saves anything"),
    ],
)
def test_impossible_targets_are_reported_before_anything_is_cut(
    home, preset, target, code, message
):
    process, _ = run_pipeline(home, preset, target)
    assert process.returncode == code, process.stderr
    assert message in " ".join(process.stderr.split())
    assert "Traceback" not in process.stderr
