"""The record of a pattern: what is refused, and what the torch reference computes with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.attention_patterns.masks import (
    BlockGlobalSelection,
    DynamicSelection,
    KeySelection,
    Scored,
    local_mask,
)
from compressor.models.attention_patterns.record import (
    ATTENTION_PATTERN,
    AttentionPattern,
    LocalHeads,
    read_attention_pattern,
    write_attention_pattern,
)
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.companions import model_files
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from tests.support.adapters import save_base
from tests.support.cli import cli

TOKENS = torch.arange(3, 43)[None] % 90
PATTERN = AttentionPattern(layers=(LocalHeads(heads=(1,), sinks=2, window=5), None, None))


@pytest.fixture
def base(tmp_path: Path) -> SimpleNamespace:
    return save_base(tmp_path)


def _logits(folder: Path, **inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return load_module(folder)(**(inputs or {"input_ids": TOKENS}))["logits"]


def test_a_written_pattern_is_read_again_and_belongs_to_the_model(base: SimpleNamespace) -> None:
    before = model_files(base.model)
    assert read_attention_pattern(base.model) is None
    assert not facts_of(base.model).attention_pattern
    write_attention_pattern(PATTERN, base.model)
    assert read_attention_pattern(base.model) == PATTERN
    assert {*model_files(base.model)} - {*before} == {base.model / ATTENTION_PATTERN}
    assert facts_of(base.model).attention_pattern


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers": [None]}, "1 entries, and the model has 3 layers"),
        (
            {"layers": [None, {"heads": [0, 7], "sinks": 4, "window": 8}, None]},
            "layers.1.heads: head 7 is out of range: the model has 2 key-value heads",
        ),
        ({"layers": [{"heads": [0], "sinks": 4, "window": 0}, None, None]}, "layers.0.window"),
        ({"layers": [{"heads": [0], "sinks": -1, "window": 1}, None, None]}, "layers.0.sinks"),
        ({"layers": [{"heads": [], "sinks": 4, "window": 8}, None, None]}, "layers.0.heads"),
        ({"layers": [{"heads": [1, 0], "sinks": 4, "window": 8}, None, None]}, "ascending indices"),
        ({"layers": [{"heads": [-1], "sinks": 4, "window": 8}, None, None]}, "ascending indices"),
        ({"layers": [None, None, None], "version": 2}, "version"),
        ({"layers": [None, None, None], "windows": 4}, "windows"),
    ],
)
def test_a_pattern_that_does_not_fit_is_an_error_that_names_the_field(
    base: SimpleNamespace, content: dict, message: str
) -> None:
    (base.model / ATTENTION_PATTERN).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=ATTENTION_PATTERN.replace(".", r"\.")) as caught:
        read_description(base.model)
    assert message in str(caught.value)


def test_local_heads_see_sinks_and_window_alone() -> None:
    """The mask for 2 sinks and a window of 3, written by hand."""
    positions = torch.arange(7)[None]
    expected = [
        "1000000",
        "1100000",
        "1110000",
        "1111000",
        "1111100",
        "1101110",
        "1100111",
    ]
    mask = local_mask(positions, positions, sinks=2, window=3)[0, 0]
    assert ["".join(str(int(seen)) for seen in row) for row in mask] == expected


def test_the_reference_equals_attention_with_a_mask_by_hand(base: SimpleNamespace) -> None:
    """Keys outside of the pattern are removed one query at a time, in float64."""
    write_attention_pattern(PATTERN, base.model)
    module = load_module(base.model).double()
    heads = read_description(base.model).require(AttentionHeads)
    attention = module.get_submodule(heads.names[0])
    seen: dict[str, Tensor] = {}
    attention.o_proj.register_forward_pre_hook(
        lambda _, inputs: seen.update(output=inputs[0].detach())
    )
    attention.register_forward_pre_hook(
        lambda _, __, options: seen.update(
            hidden=options["hidden_states"],
            cos=options["position_embeddings"][0],
            sin=options["position_embeddings"][1],
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        module(input_ids=TOKENS)
        expected = _attention_by_hand(attention, seen, heads)
    assert torch.allclose(seen["output"][0], expected, atol=1e-12)


def _attention_by_hand(attention: torch.nn.Module, seen: dict, heads: AttentionHeads) -> Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    tokens, width = TOKENS.shape[1], heads.head_width
    shape = (1, tokens, -1, width)
    hidden = seen["hidden"]
    query, key, value = (
        getattr(attention, f"{name}_proj")(hidden).view(shape).transpose(1, 2) for name in "qkv"
    )
    query, key = apply_rotary_pos_emb(query, key, seen["cos"], seen["sin"])
    rows = []
    for position in range(tokens):
        parts = []
        for head in range(heads.key_heads * heads.heads_per_key):
            group = head // heads.heads_per_key
            keys = [
                k
                for k in range(position + 1)
                if group not in PATTERN.layers[0].heads or k < 2 or position - k < 5
            ]
            scores = key[0, group, keys] @ query[0, head, position] / width**0.5
            parts.append(scores.softmax(0) @ value[0, group, keys])
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_a_pattern_without_effect_changes_nothing_and_one_with_effect_does(
    base: SimpleNamespace,
) -> None:
    full = _logits(base.model)
    wide = LocalHeads(heads=(0, 1), sinks=0, window=TOKENS.shape[1])
    write_attention_pattern(AttentionPattern(layers=(wide, wide, wide)), base.model)
    assert torch.allclose(_logits(base.model), full, atol=1e-5)
    write_attention_pattern(PATTERN, base.model)
    changed = (_logits(base.model) - full).abs().amax(-1)[0]
    assert changed[:5].max() < 1e-5
    assert changed[7:].min() > 1e-5


def test_padding_and_pieces_with_a_cache_give_the_same_logits(base: SimpleNamespace) -> None:
    write_attention_pattern(PATTERN, base.model)
    whole = _logits(base.model)
    for left, right in ((3, 0), (0, 3)):
        padded = torch.nn.functional.pad(TOKENS, (left, right))
        is_token = torch.nn.functional.pad(torch.ones_like(TOKENS), (left, right))
        position_ids = (is_token.cumsum(1) - 1).clamp(min=0)
        logits = _logits(
            base.model, input_ids=padded, attention_mask=is_token, position_ids=position_ids
        )
        assert torch.allclose(logits[:, left : left + TOKENS.shape[1]], whole, atol=1e-5)
    module, cache, pieces = load_module(base.model), None, []
    with torch.inference_mode():
        for piece in TOKENS.split([20, 13, 1, 1, 5], dim=1):
            output = module(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = output["past_key_values"]
            pieces.append(output["logits"])
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def _mask(selection: KeySelection, tokens: int, scored: Scored | None = None) -> Tensor:
    positions = torch.arange(tokens)[None]
    scored = scored or Scored(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2))
    return selection.allowed(positions, positions, scored)


def test_block_global_sees_its_block_the_stride_and_nothing_else() -> None:
    mask = _mask(BlockGlobalSelection(block=4, stride=8), 24)[0, 0]
    for query in range(24):
        expected = {
            key
            for key in range(query + 1)
            if key // 4 == query // 4 or key % 8 == 0 or query % 8 == 0
        }
        assert {*mask[query].nonzero().flatten().tolist()} == expected
    more = _mask(BlockGlobalSelection(block=4, stride=8, sinks=2, preceding=True), 24)[0, 0]
    assert more[21].nonzero().flatten().tolist() == [0, 1, 8, 16, 17, 18, 19, 20, 21]


def test_dynamic_sees_the_largest_scores_and_the_window() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 2, 30, 8).unbind()
    scored = Scored(queries, keys)
    mask = _mask(DynamicSelection(top_k=4, window=3), 30, scored)[0, 1]
    scores = queries[0, 1] @ keys[0, 1].T
    for query in range(30):
        best = scores[query, : query + 1].topk(min(4, query + 1)).indices.tolist()
        near = range(max(0, query - 2), query + 1)
        assert {*mask[query].nonzero().flatten().tolist()} == {*best, *near}
    grown = _mask(DynamicSelection(top_k=4, window=1, grow_from=10), 30, scored)[0, 1]
    assert int(grown[29].sum()) in {12, 13}
    assert int(grown[9].sum()) in {4, 5}


PIPELINE = """
version: 1
name: dropped
data: {{calibration: {{source: random, model: {model}, dimensions: {{tokens: 8}}}}}}
model: {{path: {model}}}
passes:
  - {{type: {step}}}
"""


@pytest.mark.parametrize(
    "step",
    [
        "awq, bits: 4",
        "prune, target: {dimensions: {ffn: 96}}, importance: magnitude, repair: false",
        "export-gguf",
    ],
)
def test_a_pass_that_would_drop_a_pattern_is_refused_by_name_while_planning(
    base: SimpleNamespace, tmp_path: Path, step: str
) -> None:
    write_attention_pattern(PATTERN, base.model)
    text = PIPELINE.format(model=base.model, step=step)
    (tmp_path / "pipeline.yaml").write_text(text)
    result = cli("plan", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == 2
    name = step.split(",")[0]
    assert f"{name} does not keep the attention pattern" in " ".join(result.stderr.split())


def test_vllm_which_ignores_a_pattern_is_not_offered(base: SimpleNamespace, tmp_path: Path) -> None:
    write_attention_pattern(PATTERN, base.model)
    served = cli("serve", base.model, "--print-vllm", cwd=tmp_path)
    assert served.returncode == 2
    assert "which vLLM ignores" in " ".join(served.stderr.split())
