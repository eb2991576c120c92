"""Attention of single tokens with the query heads of a key head stacked: the same logits."""

import numpy as np
import onnx
import onnxruntime_genai
import pytest

from compressor.errors import RequirementError
from compressor.models.attention_patterns.record import (
    AttentionPattern,
    LocalHeads,
    write_attention_pattern,
)
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.rows import open_rows
from compressor.runtimes.rows import RowOptions
from tests.support.decoders import FIELDS, TOKENS, export_decoder, save_decoder
from tests.support.slots import export_with_slots, write_random_adapter

GROUPS_OF_8 = {"num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 256}
PROMPT, CAPACITY = 20, 40


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Return the folders of one model, exported with stacked heads and without."""
    folder = tmp_path_factory.mktemp("stacked")
    parent = save_decoder(folder / "parent", "tiny-llama", GROUPS_OF_8)
    plain = {**FIELDS, "decoder": {"stacked_heads": False}}
    output, _ = export_decoder(parent, folder / "stacked")
    export_decoder(parent, folder / "plain", plain)
    assert all(way["max_abs"] < 1e-4 for way in output.summary["parity"])
    return folder / "stacked", folder / "plain"


def operators(folder):
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


def decoded(folder, batch_size, lengths=None):
    """Return the logits of each step behind a prompt, up to the capacity of the cache."""
    decoder = OnnxDecoder(folder, 1, batch_size=batch_size, capacity=CAPACITY)
    ids_BT = TOKENS[:batch_size]
    decoder.forward(ids_BT[:, :PROMPT], lengths)
    steps = (decoder.forward(ids_BT[:, [at]]).copy() for at in range(PROMPT, CAPACITY))
    return np.concatenate(list(steps), axis=1)


def test_each_layer_chooses_by_length(graphs):
    stacked, plain = map(operators, graphs)
    assert stacked.count("If") == plain.count("GroupQueryAttention") == 3
    assert "GroupQueryAttention" not in stacked
    assert "If" not in plain


def test_single_tokens_get_the_logits_of_grouped_attention_to_the_end_of_the_cache(graphs):
    stacked, plain = (decoded(folder, 1) for folder in graphs)
    assert 0 < np.abs(stacked - plain).max() < 1e-5  # computed in another order


def test_several_sequences_of_different_lengths_keep_grouped_attention(graphs):
    stacked, plain = (decoded(folder, 3, np.array([20, 7, 12])) for folder in graphs)
    np.testing.assert_allclose(stacked, plain, atol=1e-5)


def test_tokens_that_follow_a_shortened_cache_see_none_of_the_former_ones(graphs):
    decoder = OnnxDecoder(graphs[0], 1, capacity=CAPACITY)
    decoder.forward(TOKENS[:1, :PROMPT])
    decoder.forward(TOKENS[:1, [PROMPT]])
    decoder.truncate(5)
    again = decoder.forward(TOKENS[:1, [5]]).copy()
    decoder.reset()
    np.testing.assert_allclose(again, decoder.forward(TOKENS[:1, :6]), atol=1e-5)


def test_a_first_token_needs_no_prompt(graphs):
    first = [OnnxDecoder(folder, 1, capacity=CAPACITY).forward(TOKENS[:1, :1]) for folder in graphs]
    np.testing.assert_allclose(*first, atol=1e-5)


def test_rows_of_a_server_keep_their_neighbours_tokens(graphs):
    rows = open_rows(graphs[0], RowOptions(rows=2, capacity=CAPACITY, threads=1))
    full, other = TOKENS[0, : CAPACITY - 1], TOKENS[1]
    rows.append(0, 0, full[:10], None, 1)
    rows.append(1, 0, other[:PROMPT], None, 1)
    for at in range(10, CAPACITY - 1):  # up to the end of the row, where the next one begins
        logits = rows.append(0, at, full[[at]], None, 1).copy()
    alone = OnnxDecoder(graphs[1], 1, capacity=CAPACITY)
    np.testing.assert_allclose(logits[-1], alone.forward(full[None])[0, -1], atol=1e-5)
    alone.reset()
    expected = alone.forward(other[None, : PROMPT + 1])[0, -1]
    actual = rows.append(1, PROMPT, other[[PROMPT]], None, 1)[-1]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_guessed_tokens_that_are_dropped_again_change_nothing(graphs):
    """Prompt lookup appends several tokens at once, and keeps some of them."""
    found = []
    for folder in graphs:
        rows = open_rows(folder, RowOptions(rows=1, capacity=CAPACITY, threads=1))
        rows.append(0, 0, TOKENS[0, :PROMPT], None, 1)
        rows.append(0, PROMPT, TOKENS[0, PROMPT : PROMPT + 1], None, 1)
        guessed = rows.append(0, PROMPT + 1, TOKENS[1, :5], None, 5).copy()
        after = rows.append(0, PROMPT + 3, TOKENS[2, [0]], None, 1).copy()
        found.append(np.concatenate([guessed, after]))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_adapters_change_the_stacked_heads_alike(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", GROUPS_OF_8)
    shapes = {
        f"model.layers.{layer}.self_attn.{name}_proj": (outputs, 256)
        for layer in range(3)
        for name, outputs in (("q", 256), ("v", 32))
    }
    adapter = write_random_adapter(parent.model, tmp_path / "adapter", shapes)
    found = []
    for name, options in (("stacked", {}), ("plain", {"stacked_heads": False})):
        folder = export_with_slots(parent, tmp_path / name, "q_proj", "v_proj", **options)
        options = RowOptions(rows=1, capacity=CAPACITY, threads=1, adapters={"new": adapter})
        rows = open_rows(folder, options)
        base = rows.append(0, 0, TOKENS[0, :PROMPT], None, 1).copy()
        rows.use_adapter(0, "new")
        changed = rows.append(0, 0, TOKENS[0, :PROMPT], None, 1).copy()
        assert np.abs(changed - base).max() > 1e-2
        steps = [rows.append(0, at, TOKENS[0, [at]], None, 1).copy() for at in range(PROMPT, 30)]
        found.append(np.concatenate(steps))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_onnxruntime_genai_generates_the_same(graphs):
    sequences = []
    for folder in graphs:
        model = onnxruntime_genai.Model(str(folder))
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=32, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array([5, 6, 7], dtype=np.int32))
        for _ in range(20):
            generator.generate_next_token()
        sequences.append(generator.get_sequence(0).tolist())
    assert sequences[0] == sequences[1]


def test_layers_with_a_window_and_caches_in_8_bits_stay_as_they_are(tmp_path):
    parent = save_decoder(tmp_path / "gemma", "tiny-gemma3", GROUPS_OF_8)
    export_decoder(parent, tmp_path / "windows")
    names = operators(tmp_path / "windows")
    assert (names.count("If"), names.count("GroupQueryAttention")) == (1, 2)
    fields = {**FIELDS, "decoder": {"int8_kv_cache": {"data": "text"}}}
    export_decoder(parent, tmp_path / "int8", fields)
    assert "If" not in operators(tmp_path / "int8")


def test_full_heads_of_a_mixed_layer_are_stacked_and_local_ones_are_not(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", GROUPS_OF_8)
    local = LocalHeads(heads=(0,), sinks=2, window=8)
    write_attention_pattern(AttentionPattern(layers=(local, None, local)), parent.model)
    output, _ = export_decoder(parent, tmp_path / "out")
    assert all(way["max_abs"] < 1e-4 for way in output.summary["parity"])
    names = operators(tmp_path / "out")
    assert (names.count("If"), names.count("GroupQueryAttention")) == (3, 2)


@pytest.mark.parametrize(
    ("fields", "heads", "reason"),
    [
        ({"decoder": {"target": "portable"}}, GROUPS_OF_8, "the standard operators"),
        ({"decoder": {"int8_kv_cache": {"data": "text"}}}, GROUPS_OF_8, "a cache in 8 bits"),
        ({"dtype": "float16"}, GROUPS_OF_8, "attention in float16"),
        ({}, {}, "fewer than 4 query heads share a key head"),
    ],
)
def test_the_field_is_refused_where_it_has_no_effect(fields, heads, reason, tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", heads)
    decoder = {**fields.get("decoder", {}), "stacked_heads": True}
    with pytest.raises(RequirementError, match=rf"`decoder\.stacked_heads`: .*{reason}"):
        export_decoder(parent, tmp_path / "out", {**FIELDS, **fields, "decoder": decoder})
