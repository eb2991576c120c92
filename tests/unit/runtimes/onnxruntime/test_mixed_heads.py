"""Heads that attend to sinks and a window, beside full ones: the graph against torch."""

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.engine.contract import PlanContext
from compressor.errors import ModelError, RequirementError
from compressor.graphs.decoder.adapter_slots import SLOTS_KEY, slot_inputs, slots_from_json
from compressor.models.adapters.factors import Factors
from compressor.models.attention_patterns.record import (
    AttentionPattern,
    LocalHeads,
    write_attention_pattern,
)
from compressor.models.facts import facts_of
from compressor.runtimes.formats import open_session, recognize
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.rows import RowOptions
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
from tests.support.decoders import FIELDS, export_decoder, pack_decoder, save_decoder

CONTEXT = 512
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
PATTERN = AttentionPattern(
    layers=(
        LocalHeads(heads=(0, 2), sinks=4, window=24),
        LocalHeads(heads=(0, 1, 2, 3), sinks=3, window=40),
        LocalHeads(heads=(3,), sinks=0, window=24),
    )
)
TOKENS = np.random.default_rng(3).integers(4, 490, (2, 400))


def save_mixed(folder, preset, pattern=PATTERN):
    """Save a checkpoint with a pattern; its artifact."""
    parent = save_decoder(folder, preset, HEADS)
    write_attention_pattern(pattern, folder)
    return parent


def logits_of(parent):
    with open_session("torch", parent.model, threads=1) as session:
        return session.run({"input_ids": TOKENS})["logits"]


def assert_same(actual, expected):
    assert np.abs(actual - expected).max() < 1e-4


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen3", "tiny-qwen2", "tiny-glm4"])
def test_every_way_of_running_the_graph_has_the_logits_of_torch(preset, tmp_path):
    parent = save_mixed(tmp_path / "torch", preset)
    output, _ = export_decoder(parent, tmp_path / "onnx")
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
    sizes = [output.summary[f"kv_cache_bytes{end}"] for end in ("", "_without_bounds")]
    assert sizes[0] < 0.8 * sizes[1]
    expected = logits_of(parent)
    decoder = OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT)
    assert_same(decoder.forward(TOKENS[:1, :250])[0, -1], expected[0, 249])
    for position in range(250, 400):
        step = decoder.forward(TOKENS[:1, position : position + 1])[0, 0]
        assert_same(step, expected[0, position])
    decoder.reset()
    assert_same(decoder.forward(TOKENS[:1], logits_to_keep=0)[0], expected[0])
    with open_session("onnx", tmp_path / "onnx", threads=1) as session:
        assert_same(session.run({"input_ids": TOKENS})["logits"], expected)
    rows = recognize(tmp_path / "onnx").format.open_rows(
        tmp_path / "onnx", RowOptions(1, 2, CONTEXT)
    )
    lengths = np.array([300, 20])
    for row, length in enumerate(lengths):
        prompt = rows.append(row, 0, TOKENS[row, :length], None, 1)
        assert_same(prompt[0], expected[row, length - 1])
    for _ in range(80):
        step = rows.step(lengths, TOKENS[np.arange(2), lengths], [None] * 2)
        assert_same(step, expected[np.arange(2), lengths])
        lengths += 1


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": {"int8_kv_cache": {"data": "text"}}},
        {"dtype": "float16"},
        {"decoder": {"int8_embeddings": True, "adapter_slots": ("all-linear",)}},
    ],
    ids=["int8", "float16", "slots"],
)
def test_caches_of_every_type_and_slots_follow_the_heads(fields, tmp_path):
    parent = save_mixed(tmp_path / "torch", "tiny-llama")
    output, _ = export_decoder(parent, tmp_path / "onnx", FIELDS | fields)
    assert all(way["kl"] < 2e-3 for way in output.summary["parity"])
    expected = logits_of(parent)
    bounded, whole = (
        OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT, drops_positions=drops)
        for drops in (True, False)
    )
    for start, end in [(0, 300), *((position, position + 1) for position in range(300, 400))]:
        dropped, kept = (
            decoder.forward(TOKENS[:1, start:end])[0, -1] for decoder in (bounded, whole)
        )
        assert np.abs(dropped - kept).max() < 5e-3 * np.abs(kept).max()
        reference = expected[0, end - 1]
        norms = np.linalg.norm(dropped) * np.linalg.norm(reference)
        assert dropped @ reference > 0.99 * norms


def test_packed_rows_follow_their_heads(tmp_path):
    parent = save_decoder(tmp_path / "torch", "tiny-llama", HEADS)
    packed = pack_decoder(parent, tmp_path / "packed")
    write_attention_pattern(PATTERN, packed.model)
    fields = {**FIELDS, "decoder": {"accuracy_level": 1}}
    export_decoder(packed, tmp_path / "onnx", fields)
    expected = logits_of(packed)
    decoder = OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT)
    decoder.forward(TOKENS[:1, :300])
    for position in range(300, 400):
        logits = decoder.forward(TOKENS[:1, position : position + 1])[0, 0]
        assert np.abs(logits - expected[0, position]).max() < 5e-3


def test_layers_have_a_node_and_a_cache_for_each_kind_of_head(tmp_path):
    export_decoder(save_mixed(tmp_path / "torch", "tiny-llama"), tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    heads = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in model.graph.input
        if value.name.endswith("key")
    }
    assert heads == {
        "past_key_values.0.key": 2,
        "past_key_values.0.local_key": 2,
        "past_key_values.1.local_key": 4,
        "past_key_values.2.key": 3,
        "past_key_values.2.local_key": 1,
    }
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GroupQueryAttention") == 5


def test_a_full_pattern_of_no_heads_is_the_graph_without_one(tmp_path):
    parent = save_decoder(tmp_path / "torch", "tiny-llama", HEADS)
    export_decoder(parent, tmp_path / "plain")
    write_attention_pattern(AttentionPattern(layers=(None,) * 3), parent.model)
    export_decoder(parent, tmp_path / "full")
    plain, full = (onnx.load(tmp_path / name / "model.onnx") for name in ("plain", "full"))
    assert plain.graph == full.graph


def test_what_cannot_express_a_pattern_is_refused(tmp_path):
    parent = save_mixed(tmp_path / "torch", "tiny-llama")
    fields = {**FIELDS, "decoder": {"target": "portable"}}
    with pytest.raises(RequirementError, match=r"the heads of attention_pattern\.json need caches"):
        export_decoder(parent, tmp_path / "onnx", fields)
    planned = ExportOnnxConfig.model_validate(fields)
    facts = facts_of(parent.model)
    with pytest.raises(RequirementError, match=r"the heads of attention_pattern\.json need caches"):
        ExportOnnx().estimate(planned, facts, PlanContext({"parent": facts}))
    write_attention_pattern(AttentionPattern(layers=PATTERN.layers[:2]), parent.model)
    with pytest.raises(ModelError, match="2 entries, and the model has 3 layers"):
        export_decoder(parent, tmp_path / "other")


def test_the_factors_of_an_adapter_follow_the_heads(tmp_path):
    """A factor beside a projection computes what its product, added to the weight, does."""
    parent = save_mixed(tmp_path / "torch", "tiny-llama")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    fields = {**FIELDS, "decoder": {"adapter_slots": targets}}
    export_decoder(parent, tmp_path / "onnx", fields)
    weights, rng = load_file(parent.model / "model.safetensors"), np.random.default_rng(0)
    factors = {}
    for name in [name for name in weights if name.split(".")[-2] in targets]:
        outputs, inputs = weights[name].shape
        a_IR, b_RO = (
            rng.normal(size=shape).astype(np.float32) for shape in ((inputs, 2), (2, outputs))
        )
        factors[name.removesuffix(".weight")] = Factors(0.1 * a_IR, b_RO)
        weights[name] = weights[name] + torch.from_numpy(0.1 * a_IR @ b_RO).T
    save_file(weights, parent.model / "model.safetensors", {"format": "pt"})
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "onnx" / "model.onnx").metadata_props}
    slots = slots_from_json(metadata[SLOTS_KEY], tmp_path)
    decoder = OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT)
    adapter = slot_inputs(slots, factors, np.float32, tmp_path)
    decoder._decode_session.bind_inputs(adapter)
    assert_same(decoder.forward(TOKENS[:1], logits_to_keep=0)[0], logits_of(parent)[0])


def divergence(expected_BTV, actual_BTV):
    """Return the mean KL divergence."""
    log_p, log_q = (
        logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for logits in (expected_BTV, actual_BTV)
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()


@pytest.mark.parametrize("cache", [{}, {"int8_kv_cache": {"data": "text"}}], ids=["float", "int8"])
def test_fast_prompts_fill_the_caches_of_both_kinds_of_heads(cache, tmp_path):
    packed = pack_decoder(
        save_decoder(tmp_path / "torch", "tiny-llama", HEADS), tmp_path / "packed"
    )
    write_attention_pattern(PATTERN, packed.model)
    export_decoder(packed, tmp_path / "onnx", {**FIELDS, "decoder": cache})
    exact, fast = (
        OnnxDecoder(tmp_path / "onnx", 1, capacity=CONTEXT, fast_prompts=is_fast)
        for is_fast in (False, True)
    )
    prompts = (decoder.forward(TOKENS[:1, :300], logits_to_keep=0) for decoder in (exact, fast))
    assert 0 < divergence(*prompts) < 1e-3
    for position in range(300, 400):
        token = TOKENS[:1, position : position + 1]
        assert divergence(exact.forward(token), fast.forward(token)) < 1e-3
