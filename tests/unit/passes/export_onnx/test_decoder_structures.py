"""Built graphs of classes of transformers that are read from their modules."""

import json

import numpy as np
import onnx
import pytest
import transformers

from compressor.graphs.decoder.limits import graph_problems
from compressor.graphs.decoder.structures import STRUCTURES
from compressor.models.checkpoint.description import read_description
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from tests.support.built_classes import DECODER_CLASSES, save_class
from tests.support.decoders import FIELDS, TOKENS, export_decoder, initializers, pack_decoder

EVERY_CLASS = pytest.mark.parametrize("case", DECODER_CLASSES)
PORTABLE = ("bitnet", "cohere with head norms", "gemma2", "gpt2", "olmo2", "phi3", "stablelm")


def problems_of(folder):
    return graph_problems(read_description(folder).config.model_dump(mode="json"), None)


def has_attention(node):
    """Return True for the operator of a layer, or for the If that chooses between two."""
    inner = (node for field in node.attribute for node in field.g.node)
    return node.op_type == "GroupQueryAttention" or any(map(has_attention, inner))


def test_every_structure_has_a_case():
    assert {model_type for model_type, _ in DECODER_CLASSES.values()} == {*STRUCTURES}
    assert all(hasattr(transformers.models, model_type) for model_type in STRUCTURES)


@EVERY_CLASS
def test_every_class_computes_what_torch_does(case, tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES[case])
    output, _ = export_decoder(parent, tmp_path / "out")
    assert output.summary["target"] == "onnxruntime"
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in output.summary["parity"])
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert sum(map(has_attention, graph.node)) == 3


@pytest.mark.parametrize("case", PORTABLE)
def test_classes_compute_what_torch_does_in_standard_operators(case, tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES[case])
    fields = {**FIELDS, "decoder": {"target": "portable"}}
    output, _ = export_decoder(parent, tmp_path / "out", fields)
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in output.summary["parity"])


@pytest.mark.parametrize("case", ["gpt_neox", "cohere2"])
def test_classes_have_caches_and_embeddings_in_8_bits_and_graphs_in_float16(case, tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES[case])
    decoder = {"int8_kv_cache": {"data": "text"}, "int8_embeddings": True}
    output, _ = export_decoder(parent, tmp_path / "int8", {**FIELDS, "decoder": decoder})
    assert all(way["kl"] < 2e-3 for way in output.summary["parity"])
    output, _ = export_decoder(parent, tmp_path / "half", {**FIELDS, "dtype": "float16"})
    assert all(way["max_abs"] < 0.02 for way in output.summary["parity"])


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("case", ["gpt_neox", "olmo2"])
def test_packed_integers_are_carried_over(case, target, tmp_path):
    """GPT-NeoX stores query, key and value head by head; the graph has all queries first."""
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES[case])
    packed = pack_decoder(parent, tmp_path / "packed")
    fields = {**FIELDS, "decoder": {"target": target}}
    output, _ = export_decoder(packed, tmp_path / "out", fields)
    assert output.summary["target"] == target
    assert all(way["kl"] < 1e-3 for way in output.summary["parity"])
    operator = {"onnxruntime": "MatMulNBits", "portable": "DequantizeLinear"}[target]
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    assert sum(node.op_type == operator for node in nodes) == 4 * 3


def test_a_tied_table_is_stored_once(tmp_path):
    parent = save_class(tmp_path / "parent", "opt", {})
    export_decoder(parent, tmp_path / "out")
    tables = [value for value in initializers(tmp_path / "out").values() if 512 in value.shape]
    assert len([table for table in tables if table.shape == (512, 64)]) == 2  # and positions


def test_positions_of_a_sequence_behind_padding_are_its_own(tmp_path):
    """Learned positions follow the tokens of each sequence, not the columns of the batch."""
    export_decoder(save_class(tmp_path / "parent", "gpt2", {}), tmp_path / "out")
    alone = OnnxDecoder(tmp_path / "out", 1, capacity=16)
    expected = alone.forward(TOKENS[:1, :6])[0, -1].copy()
    both = OnnxDecoder(tmp_path / "out", 1, batch_size=2, capacity=16)
    both.forward(TOKENS[:2, :8], np.array([5, 8]))
    actual = both.forward(np.array([[TOKENS[0, 5]], [TOKENS[1, 8]]]))[0, -1]
    assert np.abs(actual - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("falcon", {"alibi": True}, "`alibi: True`"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("olmo", {"clip_qkv": 8.0}, "`clip_qkv: 8.0`"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 32}, "project_"),
        ("bloom", {}, "bloom decoders"),
        ("seed_oss", {"hidden_act": "mish"}, "the activation"),
        (
            "seed_oss",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            None,
        ),
    ],
)
def test_what_a_graph_lacks_is_a_problem_that_sends_the_model_to_tracing(
    model_type, fields, reason, tmp_path
):
    save_class(tmp_path, model_type, fields)
    problems = problems_of(tmp_path)
    if reason is None:
        assert not problems
    else:
        assert [problem.field for problem in problems] == ["decoder"]
        assert reason in problems[0].reason


def test_a_module_that_is_not_known_is_a_problem(tmp_path, monkeypatch):
    """A class with a norm more than the reader knows must not be built without it."""
    monkeypatch.setitem(STRUCTURES, "hunyuan_v1_dense", STRUCTURES["gemma"])
    save_class(tmp_path, "hunyuan_v1_dense", {})
    [problem] = problems_of(tmp_path)
    assert "the modules model.layers.0.self_attn.key_layernorm" in problem.reason


def test_a_head_of_another_task_is_not_built(tmp_path):
    save_class(tmp_path, "gemma", {})
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text()) | {"architectures": ["GemmaForSequenceClassification"]}
    assert [problem.field for problem in graph_problems(tree, None)] == ["decoder"]
