"""Graphs of decoders of every architecture: parity with torch, and what cannot be built."""

import json

import numpy as np
import onnx
import pytest

from calibration.sources.arrays import ArrayDataset
from compressor.errors import DataError, ParityError, RequirementError
from compressor.graphs.decoder.graph import DecoderGraph
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from passes.export_onnx.decoder.cache_scales import rotated_magnitudes
from tests.support.decoders import (
    FAMILY,
    FIELDS,
    TOKENS,
    export_decoder,
    pack_decoder,
    save_decoder,
)

EVERY_ARCHITECTURE = pytest.mark.parametrize("preset", FAMILY.presets)
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
WAYS = ["windows", "token by token", "padded"]

LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


def parity_by_way(output):
    return {row["way"]: row for row in output.summary["parity"]}


@EVERY_ARCHITECTURE
def test_every_architecture_computes_what_torch_does(preset, tmp_path):
    output, _ = export_decoder(save_decoder(tmp_path / "parent", preset), tmp_path / "out")
    ways = parity_by_way(output)
    assert list(ways) == WAYS
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in ways.values())
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    # Heads that may be stacked are behind an If.
    assert sum(node.op_type in ("GroupQueryAttention", "If") for node in graph.node) == 3
    inputs = {value.name for value in graph.input}
    assert inputs >= {"input_ids", "attention_mask", "past_key_values.2.value"}


@EVERY_ARCHITECTURE
def test_every_architecture_computes_what_torch_does_in_standard_operators(preset, tmp_path):
    fields = {**FIELDS, "decoder": {"target": "portable"}}
    output, _ = export_decoder(save_decoder(tmp_path / "parent", preset), tmp_path / "out", fields)
    ways = parity_by_way(output)
    assert list(ways) == WAYS
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in ways.values())
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    assert not (tmp_path / "out" / "genai_config.json").exists()


@EVERY_ARCHITECTURE
def test_every_architecture_stores_its_cache_in_8_bits(preset, tmp_path):
    fields = {**FIELDS, "decoder": {"int8_kv_cache": {"data": "text"}}}
    output, _ = export_decoder(save_decoder(tmp_path / "parent", preset), tmp_path / "out", fields)
    assert output.summary["kv_cache"] == "int8"
    ways = parity_by_way(output)
    assert list(ways) == WAYS
    assert all(0 < way["kl"] < 2e-3 for way in ways.values())
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    caches = [
        value
        for value in (*graph.input, *graph.output)
        if value.name.startswith(("past_key_values.", "present."))
    ]
    assert {value.type.tensor_type.elem_type for value in caches} == {onnx.TensorProto.INT8}
    decoder, peaks = OnnxDecoder(tmp_path / "out", 1, capacity=48), []
    for window in TOKENS:
        decoder.reset()
        last = decoder.forward(window[None])[0, -1]
        values = [array for name, array in decoder.kv_cache().items() if name.endswith("value")]
        peaks.append([np.abs(array.astype(int)).max(axis=(0, 2)) for array in values])
    # Every value of a head has its own scale, which its largest magnitude nearly fills.
    assert np.max(peaks, axis=0).min() > 115
    with open_session("onnx", tmp_path / "out", threads=1) as session:  # as other commands run it
        logits = session.run({"input_ids": TOKENS})["logits"]
    assert np.abs(logits[-1, -1] - last).max() < 1e-4


@pytest.mark.parametrize("in_pairs", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("width", [8, 16])
def test_a_key_fits_its_scale_at_any_position(in_pairs, width):
    keys = np.random.default_rng(0).normal(size=(2, 10, 16))
    limits = rotated_magnitudes(np.abs(keys), width, in_pairs=in_pairs).max(axis=1)
    a, b = (
        (slice(0, width, 2), slice(1, width, 2))
        if in_pairs
        else (slice(width // 2), slice(width // 2, width))
    )
    for angle in np.linspace(0, 2 * np.pi, 50):
        rotated = keys.copy()
        rotated[..., a] = np.cos(angle) * keys[..., a] - np.sin(angle) * keys[..., b]
        rotated[..., b] = np.cos(angle) * keys[..., b] + np.sin(angle) * keys[..., a]
        assert (np.abs(rotated).max(axis=1) <= limits + 1e-12).all()
    assert np.array_equal(limits[:, width:], np.abs(keys).max(axis=1)[:, width:])


def test_the_cache_is_calibrated_on_windows_from_all_over_a_set(tmp_path):
    requested = []

    class Recorded(ArrayDataset):
        def batch(self, indices):
            requested.append(indices.tolist())
            return super().batch(indices)

    dataset = Recorded({"input_ids": np.tile(TOKENS, (8, 1))[:31]}, ("input_ids",))
    fields = {**FIELDS, "decoder": {"int8_kv_cache": {"data": "text", "num_samples": 16}}}
    export_decoder(
        save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields, dataset
    )
    assert requested == [[0, 1, 2, 3], [31 * index // 16 for index in range(16)]]


def test_windows_longer_than_the_context_are_refused(tmp_path):
    fields = {**FIELDS, "decoder": {"context_length": 32}}
    with pytest.raises(DataError, match="windows of 48 tokens, and the graph attends to 32"):
        export_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields)


def test_a_sliding_window_limits_the_attention(tmp_path):
    """Gemma's layers attend to 32 tokens, and the samples have 48: another window differs."""
    parent = save_decoder(tmp_path / "parent", "tiny-gemma3")
    export_decoder(parent, tmp_path / "out")
    file = tmp_path / "parent" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": 8}))
    with open_session("onnx", tmp_path / "out", threads=1) as session:
        exported = session.run({"input_ids": TOKENS})["logits"]
    with open_session("torch", parent.model, threads=1) as session:
        narrow = session.run({"input_ids": TOKENS})["logits"]
    assert np.abs(exported - narrow).max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"rope_scaling": LONGROPE}, {}, "type longrope change beyond 64 positions"),
        ({"head_dim": 24}, {}, "a head of the model is 24 wide"),
        ({}, {"decoder": {"context_length": 513}}, "512 positions"),
    ],
)
def test_unsupported_architectures_are_refused_by_name(changes, fields, message, tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", changes)
    with pytest.raises(RequirementError, match=message):
        export_decoder(parent, tmp_path / "out", FIELDS | fields)


@pytest.mark.parametrize(
    ("preset", "changes", "decoder"),
    [
        ("tiny-llama", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3}, {}),
        ("tiny-llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}),
        ("tiny-llama", {"rope_scaling": LONGROPE}, {"context_length": 64}),
        ("tiny-mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 3}, {}),
        ("tiny-glm4", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, {}),
        ("tiny-glm4", {"head_dim": 12}, {"target": "portable"}),
        ("tiny-llama", {"hidden_act": "relu2"}, {}),
        ("tiny-qwen3", {"hidden_act": "gelu"}, {"target": "portable"}),
        ("tiny-gemma3", CAPS, {}),
        ("tiny-gemma3", CAPS, {"target": "portable"}),
    ],
    ids=[
        "ignored window",
        "dynamic",
        "longrope",
        "ignored types",
        "yarn in pairs",
        "narrow head",
        "squared relu",
        "gelu",
        "caps",
        "portable caps",
    ],
)
def test_attention_and_positions_are_those_of_the_class(preset, changes, decoder, tmp_path):
    parent = save_decoder(tmp_path / "parent", preset, changes)
    output, _ = export_decoder(parent, tmp_path / "out", FIELDS | {"decoder": decoder})
    assert all(row["max_abs"] < 1e-4 for row in output.summary["parity"])


def test_a_wrong_graph_fails_in_every_way_of_running_it(tmp_path, monkeypatch):
    monkeypatch.setattr(DecoderGraph, "_norm", lambda self, x, *_: x)
    with pytest.raises(ParityError) as caught:
        export_decoder(save_decoder(tmp_path / "parent", "tiny-qwen3"), tmp_path / "out")
    assert all(way in str(caught.value) for way in WAYS)


def test_weights_of_a_large_model_are_stored_beside_the_graph(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama")
    fields = {**FIELDS, "external_data_threshold_mb": 0}
    output, _ = export_decoder(parent, tmp_path / "out", fields)
    assert output.summary["external_data"]
    graph, data = (
        (tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )
    assert graph < 0.2 * data
    whole, _ = export_decoder(parent, tmp_path / "whole")
    assert whole.summary["parity"] == output.summary["parity"]


def test_exporting_twice_gives_the_same_bytes(tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-gemma3"), tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        export_decoder(parent, out, {**FIELDS, "decoder": {"int8_embeddings": True}})
    assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()
