"""Checkpoints of transformers through the pass, from the command line; what comes out, the library itself loads."""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, Glm4vForConditionalGeneration

from compressor.models.facts import facts_of
from compressor.models.families.transformers.family import Transformers

WORDS = [f"w{number}" for number in range(480)]
PIPELINE = """\
version: 1
name: checkpoint
threads: 1
model: {family: transformers, preset: PRESET, measure: false}
data:
  text: {source: text, path: text.txt, tokenizer: ., sequence_length: 16}
passes:
  - {type: prune, name: smaller, TARGET, calibration: text, num_samples: 12, batch_size: 4, min_keep: 0.3}
"""


def cli(*arguments):
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("checkpoints")
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(home / "tokenizer.json"))
    draw = torch.Generator().manual_seed(0)
    (home / "text.txt").write_text(
        " ".join(WORDS[i] for i in torch.randint(0, 480, (400,), generator=draw).tolist())
    )
    return home


def pruned(home, preset, target, code=0):
    file = home / f"{preset}.yaml"
    file.write_text(PIPELINE.replace("PRESET", preset).replace("TARGET", target))
    store = home / f"store-{preset}-{abs(hash(target))}"
    done = cli("run", file, "-o", store)
    assert done.returncode == code, done.stderr
    return next(store.glob("prune-*")) if code == 0 else done.stderr


def config_of(folder):
    tree = json.loads((folder / "model" / "config.json").read_text())
    return tree.get("text_config", tree) | {"vision_config": tree.get("vision_config")}


def test_every_axis_of_a_decoder_goes_and_the_library_loads_what_is_left(home):
    target = "target: {dimensions: {layers: 2, hidden: 48, ffn: 64, heads: 2}}"
    folder = pruned(home, "tiny-qwen3", target)
    config = config_of(folder)
    assert [
        config[f"num_{name}"] for name in ("hidden_layers", "attention_heads", "key_value_heads")
    ] == [2, 2, 1]
    assert (config["hidden_size"], config["intermediate_size"], config["head_dim"]) == (48, 64, 16)
    assert config["layer_types"] == ["full_attention"] * 2
    module = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (
        sum(weight.numel() for weight in module.parameters())
        == facts_of(folder / "model").parameters
    )
    assert module.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape == (
        1,
        7,
    )


def test_glm4v_goes_through_all_axes_and_still_sees_and_generates(home):
    folder = pruned(
        home, "tiny-glm4v", "target: {dimensions: {layers: 2, hidden: 96, heads: 6, ffn: 64}}"
    )
    config = config_of(folder)
    assert (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    ) == (96, 6, 2)
    assert config["vision_config"]["out_hidden_size"] == 96
    assert config["rope_parameters"]["mrope_section"] == [2, 1, 1]
    module, info = Glm4vForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    image = {
        "input_ids": torch.tensor([[1, 502, 500, 500, 500, 500, 503, 2]]),
        "attention_mask": torch.ones(1, 8, dtype=torch.int64),
        "mm_token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]),
        "pixel_values": torch.randn(
            16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0)
        ),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    seen = module(**image)["logits"]
    blind = module(**image | {"pixel_values": torch.zeros(16, 3 * 2 * 14 * 14)})["logits"]
    assert seen.isfinite().all()
    assert not torch.allclose(seen, blind)
    assert module.generate(**image, max_new_tokens=3, do_sample=False).shape == (1, 11)


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4"])
def test_a_target_is_met_over_all_axes(home, preset):
    folder = pruned(home, preset, "target: {params: 60%}, axes: [layers, hidden, ffn, heads]")
    rows = {
        row["field"]: row
        for row in json.loads((folder / "manifest.json").read_text())["summary"]["cuts"]
    }
    assert rows["parameters"]["after"] <= 0.6 * rows["parameters"]["before"]
    module = AutoModelForCausalLM.from_pretrained(folder / "model")
    weights = {weight.data_ptr(): weight.numel() for weight in module.parameters()}
    assert sum(weights.values()) == rows["parameters"]["after"]


def test_a_checkpoint_that_is_no_artifact_yet_shows_its_cut(home, tmp_path):
    family = Transformers()
    config = family.presets["tiny-glm4"]
    family.save(family.build(config), config, tmp_path / "model")
    options = [
        "--dry-run",
        "--json",
        "--set",
        "importance=magnitude",
        "--set",
        "target.dimensions.ffn=64",
        "-o",
        tmp_path / "s",
    ]
    done = cli("pass", "prune", tmp_path / "model", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["decisions"]
    assert {row["after"] for row in rows if row["field"] == "ffn"} == {64}
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").glob("*-*"))


@pytest.mark.parametrize(
    ("preset", "target", "told"),
    [
        ("tiny-glm4v", "target: {dimensions: {hidden: 96, heads: 4}}", "they shrink together"),
        (
            "tiny-glm4v",
            "target: {dimensions: {heads: 5}}",
            "heads: 5 is not between 2 and 8, in steps of 2",
        ),
        (
            "tiny-llama",
            "target: {dimensions: {heads: 3}}",
            "heads: 3 is not between 2 and 4, in steps of 2",
        ),
        (
            "tiny-llama",
            "target: {dimensions: {hidden: 47}}",
            "do not fit together: hidden_size 47 is no multiple of 4",
        ),
        ("tiny-llama", "target: {params: 1%}", "no further cut saves anything"),
    ],
)
def test_dimensions_that_do_not_fit_are_told_before_anything_is_cut(home, preset, target, told):
    said = pruned(home, preset, target, code=1)
    assert told in " ".join(said.split())
    assert "Traceback" not in said
