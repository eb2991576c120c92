"""GGUF files hold the numbers of their checkpoints, and what llama.cpp reads beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.engine.contract import PlanContext
from compressor.errors import ModelError, ParityError, RequirementError
from compressor.models.facts import facts_of
from compressor.models.families.transformers.layouts import text_config
from compressor.models.quantized.packed_checkpoint import read_dequantized
from compressor.runtimes.formats import recognize
from passes.awq.config import AwqConfig
from passes.awq.step import Awq
from passes.export_gguf.architectures import architecture_problem
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.step import ExportGguf
from tests.support.decoders import pack_decoder
from tests.support.gguf_checkpoints import (
    CHECKPOINTS,
    LLAMA_3_ROTARY,
    edit_tokenizer,
    export_gguf,
    plan_gguf,
    save_gguf_parent,
)

gguf = pytest.importorskip("gguf")

Q41 = {"gguf_scales": True}
Q40 = {**Q41, "format": "compressed-tensors", "symmetric": True, "dtype": "float16"}
Q80 = {**Q40, "bits": 8}


def read_weights(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return the type and the dequantized values of each tensor."""
    return {
        tensor.name: (
            tensor.tensor_type.name,
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
                tuple(reversed([int(size) for size in tensor.shape]))
            ),
        )
        for tensor in gguf.GGUFReader(file).tensors
    }


def read_keys(file: Path) -> dict[str, Any]:
    """Return the metadata."""
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a packed checkpoint by name, dequantized by its own format."""
    tree = json.loads((folder / "config.json").read_bytes())
    return {name: value.float() for name, value in read_dequantized(folder, tree)}


@pytest.mark.parametrize(
    ("packing", "block_type"),
    [(Q41, "Q4_1"), (Q40, "Q4_0"), (Q80, "Q8_0"), ({**Q41, "group_size": 64}, "Q4_1")],
    ids=["with zero-points", "symmetric", "8 bits", "groups of two blocks"],
)
def test_blocks_hold_the_integers_of_a_packed_checkpoint(
    packing: dict[str, Any], block_type: str, tmp_path: Path
) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq", **packing)
    file, output = export_gguf(parent, tmp_path / "out")
    stored, expected = read_weights(file), checkpoint_weights(parent.model)
    ffn = "model.layers.1.mlp.down_proj.weight"
    kind, values = stored["blk.1.ffn_down.weight"]
    if "group_size" not in packing:  # 96 inputs are no multiple of 64
        assert kind == block_type
    np.testing.assert_array_equal(values, expected[ffn].numpy())
    kind, values = stored["blk.0.attn_q.weight"]
    rows = expected["model.layers.0.self_attn.q_proj.weight"].view(4, 2, 8, 64)
    assert kind == block_type
    np.testing.assert_array_equal(values, rows.transpose(1, 2).reshape(64, 64).numpy())
    assert output.summary["file_type"] == block_type
    assert output.summary["parity"] == {"equal_tensors": len(stored), "rounded_tables": {}}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_every_architecture_has_a_place_for_all_its_tensors(name: str, tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", name)
    file, output = export_gguf(parent, tmp_path / "out")
    keys = read_keys(file)
    architecture = output.summary["architecture"]
    assert keys["general.architecture"] == architecture
    fields = text_config(facts_of(parent.model).config)
    assert keys[f"{architecture}.block_count"] == fields["num_hidden_layers"]
    assert output.summary["types"].keys() == {"F32"}


def test_norms_hold_the_value_that_the_class_adds(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", "gemma3")
    file, _ = export_gguf(parent, tmp_path / "out")
    stored = dict(read_dequantized_or_plain(parent.model))["model.norm.weight"]
    np.testing.assert_array_equal(read_weights(file)["output_norm.weight"][1], stored.numpy() + 1)


def read_dequantized_or_plain(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_tables_of_8_bits_are_reported_with_their_error(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    file, output = export_gguf(parent, tmp_path / "out", dtype="float16", tables="q8_0")
    stored = read_weights(file)
    assert stored["token_embd.weight"][0] == "Q8_0"
    assert stored["blk.0.ffn_up.weight"][0] == "F16"
    assert stored["blk.0.attn_norm.weight"][0] == "F32"
    (error,) = output.summary["parity"]["rounded_tables"].values()
    assert 1e-4 < error < 1e-2


def test_tokenizer_and_chat_template_are_written(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    keys = read_keys(export_gguf(parent, tmp_path / "out")[0])
    tree = json.loads((parent.model / "tokenizer.json").read_bytes())
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == 512
    assert {tokens[number]: number for number in range(400)} == tree["model"]["vocab"]
    assert tokens[511] == "[PAD511]"
    types = keys["tokenizer.ggml.token_type"]
    assert [types[0], types[300], types[511]] == [3, 1, 5]  # control, normal, unused
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.bos_token_id"] == 0
    assert keys["tokenizer.ggml.eos_token_id"] == 1
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"].startswith("{% for m in messages %}")
    merges = [" ".join(merge) for merge in tree["model"]["merges"]]
    assert keys["tokenizer.ggml.merges"] == merges


def test_a_tokenizer_of_sentencepiece_states_its_merges_as_scores(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", "mistral")
    keys = read_keys(export_gguf(parent, tmp_path / "out")[0])
    tree = json.loads((parent.model / "tokenizer.json").read_bytes())
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    first, last = tree["model"]["merges"][0], tree["model"]["merges"][-1]
    assert scores[tokens.index("".join(first))] > scores[tokens.index("".join(last))]
    assert keys["tokenizer.ggml.token_type"][tokens.index("<0x0A>")] == 6  # byte
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignores_merges", "name"),
    [
        ({"type": "Digits", "individual_digits": True}, False, "smollm"),
        (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|", True, "llama-bpe"),
        (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", False, "qwen2"),
    ],
)
def test_the_rule_that_splits_text_has_llamacpps_name(
    pre_tokenizer: Any, ignores_merges: bool, name: str, tmp_path: Path
) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if isinstance(pre_tokenizer, str):
        regex = pre_tokenizer + r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
        steps = [{**split, "invert": False}, {**level, "use_regex": False}]
    else:
        steps = [pre_tokenizer, {**level, "use_regex": True}]
    model = json.loads((parent.model / "tokenizer.json").read_bytes())["model"]
    edit_tokenizer(
        parent.model,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        model={**model, "ignore_merges": ignores_merges},
    )
    keys = read_keys(export_gguf(parent, tmp_path / "out")[0])
    assert keys["tokenizer.ggml.pre"] == name


def test_rotary_scaling_is_written(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", "llama with llama3 rotary")
    factors = read_weights(export_gguf(parent, tmp_path / "out")[0])["rope_freqs.weight"][1]
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=LLAMA_3_ROTARY)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, expected.numpy(), rtol=1e-6)
    yarn = save_gguf_parent(tmp_path / "yarn", "llama with yarn")
    keys = read_keys(export_gguf(yarn, tmp_path / "out-yarn")[0])
    assert keys["llama.rope.scaling.type"] == "yarn"
    assert keys["llama.rope.scaling.factor"] == 4.0
    assert keys["llama.rope.scaling.original_context_length"] == 128


def test_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    first, second = (export_gguf(parent, tmp_path / name)[0] for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_with_other_numbers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq", **Q41)
    from passes.export_gguf import file_tensors

    blocks_of = file_tensors.blocks_of
    monkeypatch.setattr(file_tensors, "blocks_of", lambda layer: blocks_of(layer) ^ 0x01)
    with pytest.raises(ParityError, match=r"blk\.0\.\S+ differs from model\.layers\.0"):
        export_gguf(parent, tmp_path / "out")


def test_the_folder_is_recognized_and_listed(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    file, _ = export_gguf(parent, tmp_path / "out")
    model = recognize(file.parent)
    assert model.format.name == "gguf"
    assert model.format.facts(model.path).parameters == facts_of(parent.model).parameters
    assert ("architecture", "llama") in model.format.describe(model.path)


@pytest.mark.parametrize(
    ("packing", "problem"),
    [
        (
            {"format": "compressed-tensors", "bits": 3},
            r"layers\.\*\.mlp\.down_proj: 3 bits with zero-points; the nearest that fits is 4 bits "
            r"in groups of 32",
        ),
        (
            {"format": "compressed-tensors", "bits": 8},
            "8 bits with zero-points; the nearest that fits is 8 bits in groups of 32, symmetric",
        ),
        ({"group_size": 16, **Q41}, "groups of 16; the nearest that fits is 4 bits in groups"),
        ({}, "scales of the `awq` step are chosen without regard to it"),
    ],
)
def test_a_plan_refuses_integers_that_no_block_holds(
    packing: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    facts = facts_of(save_gguf_parent(tmp_path / "parent").model)
    fields = {"calibration": {"data": "text"}, "group_size": 32, **packing}
    context = PlanContext({"parent": facts})
    planned = Awq().estimate(AwqConfig.model_validate(fields), facts, context).model
    with pytest.raises(RequirementError, match=problem):
        ExportGguf().estimate(ExportGgufConfig(), planned, context)


def test_a_packed_checkpoint_whose_offsets_are_no_float16_is_refused(tmp_path: Path) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq")
    with pytest.raises(RequirementError, match=r"scale · zero-point of \d+ of \d+ groups") as info:
        export_gguf(parent, tmp_path / "out")
    assert "gguf_scales: true" in str(info.value.remedy)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("llama", {"hidden_act": "gelu"}, r"the activation gelu \(`hidden_act`\)"),
        ("qwen2", {"head_dim": 24}, "4 heads of 24 values"),
        ("gemma3", {"query_pre_attn_scalar": 20}, "scaled by another value"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "other `layer_types`"),
    ],
)
def test_a_plan_refuses_what_llamacpp_does_not_compute(
    name: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    facts = facts_of(save_gguf_parent(tmp_path / "parent", name, **changes).model)
    with pytest.raises(RequirementError, match=problem):
        ExportGguf().estimate(ExportGgufConfig(), facts, PlanContext({}))


def test_models_without_a_row_are_refused_with_the_table(tmp_path: Path) -> None:
    folder = save_gguf_parent(tmp_path / "parent").model
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlavaForConditionalGeneration"]
    problem = str(architecture_problem(config))
    assert "has no row in the table of GGUF architectures; supported: LlamaForCausalLM" in problem
    assert "its vision tower has no row" in str(
        architecture_problem({**config, "vision_config": {1: 2}})
    )


def test_an_unknown_rule_is_refused_unless_its_name_is_stated(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    split = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    edit_tokenizer(parent.model, pre_tokenizer=split)
    with pytest.raises(RequirementError, match=r"a rule that has no known name .*'x\+'"):
        plan_gguf(parent.model)
    with pytest.raises(RequirementError, match="a rule that has no known name"):
        plan_gguf(pack_decoder(parent, tmp_path / "awq", gguf_scales=True).model)
    file, _ = export_gguf(parent, tmp_path / "b", pre_tokenizer="gpt-2")
    assert read_keys(file)["tokenizer.ggml.pre"] == "gpt-2"


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    (parent.model / "tokenizer.json").unlink()
    with pytest.raises(RequirementError, match=r"has no tokenizer\.json"):
        plan_gguf(parent.model)


def test_a_damaged_tokenizer_and_a_name_that_llamacpp_trips_over_are_refused(
    tmp_path: Path,
) -> None:
    parent = save_gguf_parent(tmp_path / "parent")
    with pytest.raises(RequirementError, match="looks up tokens of Phi-3"):
        plan_gguf(parent.model, name="my-phi-3")
    edit_tokenizer(parent.model, model={"type": "BPE"})
    with pytest.raises(ModelError, match=r"tokenizer\.json: it is no tokenizer"):
        plan_gguf(parent.model)
