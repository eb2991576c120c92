"""Tests of traced decoders: caches of keys, values and states, padding, and config fields."""

import json

import numpy as np
import onnx
import pytest

from calibration.sources.arrays import ArrayDataset
from compressor.errors import RequirementError, UsageError
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import read_description
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.torch.session import TorchSession
from passes.export_onnx.cached_exporter import CachedExporter
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.exporters import stored_exporter
from tests.support.decoders import export_decoder
from tests.support.generating_classes import save_class

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
TOKENS = np.random.default_rng(0).integers(3, 300, (3, 14))


def export(folder, model_type, **fields):
    parent = save_class(folder / "torch", model_type)
    dataset = ArrayDataset({"input_ids": TOKENS}, ("input_ids",))
    fields = {"parity": {"data": "text"}, **fields}
    output, notes = export_decoder(parent, folder / "onnx", fields, dataset)
    return output.summary, notes


def torch_logits(folder, ids):
    with TorchSession(folder / "torch", 1, "cpu") as session:
        return session.run({"input_ids": ids})["logits"]


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bloom")
    return folder, *export(folder, "bloom")


def test_a_class_without_a_built_graph_is_compared_in_every_way(bloom):
    _, summary, notes = bloom
    assert summary["target"] == "traced"
    ways = {way["way"]: way["max_abs"] for way in summary["parity"]}
    assert ways.keys() == {"windows", "token by token", "padded"}
    assert max(ways.values()) < 1e-4
    assert not notes


def test_a_graph_keeps_only_the_logits_that_are_used(bloom):
    folder = bloom[0]
    decoder = OnnxDecoder(folder / "onnx", 1, capacity=20)
    logits = decoder.forward(TOKENS[:1, :10], logits_to_keep=2).copy()
    assert logits.shape == (1, 2, 320)
    np.testing.assert_allclose(logits, torch_logits(folder, TOKENS[:1, :10])[:, -2:], atol=1e-4)


def test_sequences_of_different_lengths_continue_as_they_do_alone(bloom):
    folder = bloom[0]
    lengths = np.array([10, 6])
    ids = np.where(np.arange(10) < lengths[:, None], TOKENS[:2, :10], 0)
    decoder = OnnxDecoder(folder / "onnx", 1, batch_size=2, capacity=20)
    decoder.forward(ids, lengths)
    following = decoder.forward(np.array([[50, 51, 52], [60, 61, 62]]), logits_to_keep=0)
    for row, (length, new) in enumerate(zip(lengths, ([50, 51, 52], [60, 61, 62]), strict=True)):
        whole = np.array([[*TOKENS[row, :length], *new]])
        np.testing.assert_allclose(following[row], torch_logits(folder, whole)[0, -3:], atol=1e-4)


def test_a_traced_graph_in_float16_computes_what_torch_does(tmp_path):
    summary, _ = export(tmp_path, "bloom", dtype="float16")
    assert (summary["dtype"], summary["kv_cache"]) == ("float16", "float32")
    assert max(way["max_abs"] for way in summary["parity"]) < 0.02
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    stored = [
        tensor.data_type
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type in FLOATS
    ]
    assert stored.count(onnx.TensorProto.FLOAT16) > len(stored) / 2
    decoder = OnnxDecoder(tmp_path / "onnx", 1, capacity=20)
    decoder.forward(TOKENS[:1, :9])
    logits = decoder.forward(TOKENS[:1, 9:10])
    np.testing.assert_allclose(
        logits[0, -1], torch_logits(tmp_path, TOKENS[:1, :10])[0, -1], atol=0.02
    )
    with pytest.raises(UsageError, match="no weights that are multiplied as packed integers"):
        OnnxDecoder(tmp_path / "onnx", 1, capacity=20, fast_prompts=True)


def test_biases_in_bfloat16_are_computed_as_torch_rounds_them(tmp_path):
    summary, _ = export(tmp_path, "falcon")
    assert max(way["max_abs"] for way in summary["parity"]) < 1e-4


def test_states_of_recurrent_layers_are_inputs_and_outputs(tmp_path):
    summary, notes = export(tmp_path, "lfm2")
    assert [way["way"] for way in summary["parity"]] == ["windows", "token by token"]
    assert max(way["max_abs"] for way in summary["parity"]) < 1e-3
    assert not notes
    decoder = OnnxDecoder(tmp_path / "onnx", 1, batch_size=2, capacity=20)
    with pytest.raises(UsageError, match="different lengths"):
        decoder.forward(TOKENS[:2], np.array([14, 6]))


def test_a_class_that_loops_over_tokens_takes_one_per_call(tmp_path):
    summary, notes = export(tmp_path, "mamba")
    assert max(way["max_abs"] for way in summary["parity"]) < 1e-3
    assert "one token per call" in notes[0]
    with open_session("onnx", tmp_path / "onnx", threads=1) as session:
        logits = session.run({"input_ids": TOKENS})["logits"]
    np.testing.assert_allclose(logits, torch_logits(tmp_path, TOKENS), atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": {"target": "portable"}},
        {"decoder": {"int8_embeddings": True}},
        {"decoder": {"context_length": 4096}},
        {"dynamic": ["batch"]},
        {"simplify": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_of_other_graphs_are_errors_by_name(fields, tmp_path):
    parent = save_class(tmp_path, "lfm2")
    exporter = stored_exporter(
        ExportOnnxConfig.model_validate_json(json.dumps(fields)), read_description(parent.model)
    )
    assert isinstance(exporter, CachedExporter)
    name, value = next(iter(fields.items()))
    path = f"{name}.{next(iter(value))}" if isinstance(value, dict) else name
    with pytest.raises(RequirementError, match=f"`{path}`"):
        exporter.check_fields()


def test_the_cache_of_a_class_is_found_by_running_it(tmp_path):
    parent = save_class(tmp_path, "lfm2")
    generation = read_description(parent.model).require(CachedGeneration)
    assert {tensor.name: tensor.shape for tensor in generation.tensors} == {
        "0.conv_state": ("batch", 32, 3),
        "1.key": ("batch", 2, "past", 8),
        "1.value": ("batch", 2, "past", 8),
    }
    assert (generation.context_length, generation.key_heads, generation.head_width) == (128, 2, 8)
    assert generation.cache_bytes(10, 4) == 4 * (32 * 3 + 2 * 2 * 10 * 8)
