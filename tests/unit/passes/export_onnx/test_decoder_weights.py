"""Weights of decoders in ONNX: packed integers are carried over, embeddings rounded to 8 bits."""

import json

import numpy as np
import onnx
import pytest
import torch

from compressor.errors import ParityError, RequirementError
from compressor.graphs.decoder.block_sizes import block_size
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.weight_grid import WeightGrid
from compressor.runtimes.onnxruntime.cost import count_parameters
from compressor.runtimes.onnxruntime.low_precision import integer_weight_share
from compressor.runtimes.onnxruntime.profile import profile
from tests.support.decoders import (
    FAMILY,
    FIELDS,
    TOKENS,
    export_decoder,
    initializers,
    pack_decoder,
    save_decoder,
)


def checkpoint_weights(folder):
    return CheckpointWeights(folder, json.loads((folder / "config.json").read_text()))


GRIDS = {
    "gemm": {},
    "symmetric": {"format": "compressed-tensors", "symmetric": True},
    "8 bits": {"format": "compressed-tensors", "bits": 8},
}
TEXT_PRESETS = ("tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3")


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        *(
            pytest.param(preset, fields, id=f"{name}-{preset}")
            for preset in TEXT_PRESETS
            for name, fields in GRIDS.items()
        ),
        pytest.param("tiny-glm4v", {}, id="gemm-tiny-glm4v"),  # traces its vision tower: slow
    ],
)
def test_packed_integers_are_carried_over(preset, fields, tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", preset), tmp_path, **fields)
    output, _ = export_decoder(
        parent, tmp_path / "onnx", {**FIELDS, "decoder": {"accuracy_level": 1}}
    )
    assert max(way["max_abs"] for way in output.summary["parity"]) < 1e-3
    weights, stored = checkpoint_weights(parent.model), initializers(tmp_path / "onnx")
    is_nested = FAMILY.presets[preset].tree.get("text_config")
    root = "model.language_model" if is_nested else "model"
    names = [name for name in stored if name.endswith(".data") and name.startswith("layers.")]
    assert len(names) == 12
    for name in names:
        module, _, linears = name.removesuffix(".data").rpartition(".")
        parts = linears.removesuffix("_proj").split("_proj_")
        layers = [weights.packed_layer(f"{root}.{module}.{part}_proj") for part in parts]
        bits = layers[0].grid.bits
        places = [stored[name] >> (bits * place) & (2**bits - 1) for place in range(8 // bits)]
        unpacked = np.stack(places, axis=-1).reshape(len(places[0]), -1)
        assert np.array_equal(unpacked, torch.cat([layer.integers_OI for layer in layers]).numpy())
        scales = stored[name.replace(".data", ".scales")]
        assert np.array_equal(scales, torch.cat([layer.scales_OG for layer in layers]).numpy())
        assert (name.replace(".data", ".zeros") in stored) == (not layers[0].grid.symmetric)


@pytest.mark.parametrize(
    "fields", [{}, {"symmetric": True}, {"bits": 8}], ids=["4 bits", "symmetric", "8 bits"]
)
def test_standard_operators_read_packed_integers(fields, tmp_path):
    parent = pack_decoder(
        save_decoder(tmp_path / "parent", "tiny-qwen3"),
        tmp_path,
        format="compressed-tensors",
        **fields,
    )
    decoder = {"target": "portable", "int8_embeddings": True}
    output, _ = export_decoder(parent, tmp_path / "onnx", {**FIELDS, "decoder": decoder})
    assert max(way["kl"] for way in output.summary["parity"]) < 1e-3
    weights, stored = checkpoint_weights(parent.model), initializers(tmp_path / "onnx")
    layer = weights.packed_layer("model.layers.1.mlp.down_proj")
    integers = stored["layers.1.mlp.down_proj.data"].astype(np.int16).T
    zero_point = layer.grid.middle if layer.grid.symmetric else 0
    assert np.array_equal(integers + zero_point, layer.integers_OI.numpy().astype(np.int16))
    assert ("layers.1.mlp.down_proj.zeros" in stored) == (not layer.grid.symmetric)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_scales_in_bfloat16_are_widened_to_float32(target, tmp_path):
    packed = pack_decoder(
        save_decoder(tmp_path / "parent", "tiny-qwen3"),
        tmp_path / "p",
        format="compressed-tensors",
        dtype="bfloat16",
    )
    level = {"accuracy_level": 1} if target == "onnxruntime" else {}
    output, _ = export_decoder(
        packed, tmp_path / "out", {**FIELDS, "decoder": {"target": target, **level}}
    )
    assert all(way["kl"] < (1e-9 if level else 1e-3) for way in output.summary["parity"])
    weight = load_module(packed.model).model.layers[0].mlp.down_proj.weight.detach().numpy()
    scales = initializers(tmp_path / "out")["layers.0.mlp.down_proj.scales"]
    assert scales.dtype == np.float32
    steps = weight[0, :32] / scales[0, 0]  # the first group, whichever axis comes first
    assert np.array_equal(steps, steps.round())


def test_activations_are_rounded_only_if_the_comparison_holds(tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path)
    output, notes = export_decoder(parent, tmp_path / "usual")
    assert output.summary["accuracy_level"] == 4
    assert not notes
    strict = {"parity": {"data": "text", "kl": 1e-7}}
    output, notes = export_decoder(parent, tmp_path / "strict", strict)
    assert output.summary["accuracy_level"] == 1
    assert "KL" in notes[0]
    with pytest.raises(ParityError, match="KL"):
        export_decoder(parent, tmp_path / "never", {**strict, "decoder": {"accuracy_level": 4}})


@pytest.mark.parametrize("name", ["int8_embeddings", "int8_tables"], ids=["name", "former name"])
def test_a_tied_embedding_in_8_bits_is_stored_once(name, tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama")
    export_decoder(parent, tmp_path / "float")
    fields = {**FIELDS, "decoder": {name: True, "accuracy_level": 1}}
    output, _ = export_decoder(parent, tmp_path / "int8", fields)
    assert max(way["kl"] for way in output.summary["parity"]) < 1e-3
    stored = initializers(tmp_path / "int8")
    assert stored["head.data"].shape == (512, 1, 64)
    assert [name for name, value in stored.items() if value.size == 512 * 64] == ["head.data"]
    assert "embed_tokens" in initializers(tmp_path / "float")


def test_an_embedding_that_blocks_do_not_divide_is_refused(tmp_path):
    changes = {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 16}
    parent = save_decoder(tmp_path / "odd", "tiny-llama", changes)
    with pytest.raises(RequirementError, match=r"`decoder\.int8_embeddings`: a hidden width of 72"):
        export_decoder(parent, tmp_path / "out", {**FIELDS, "decoder": {"int8_embeddings": True}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 3}, "3 bits"),
        ({"group_size": 8, "symmetric": True}, "groups of 8"),
        ({"bits": 2, "target": "portable"}, "2 bits"),
    ],
)
def test_integers_that_the_operator_cannot_hold_are_refused_before_the_graph_is_built(
    fields, message, tmp_path
):
    target = fields.pop("target", "onnxruntime")
    parent = pack_decoder(
        save_decoder(tmp_path / "parent", "tiny-llama"),
        tmp_path,
        format="compressed-tensors",
        **fields,
    )
    with pytest.raises(RequirementError, match=message) as caught:
        export_decoder(parent, tmp_path / "onnx", {**FIELDS, "decoder": {"target": target}})
    assert "model.layers.*.self_attn: q_proj, k_proj, v_proj" in str(caught.value)
    assert "model.layers.*.mlp: down_proj" in str(caught.value)
    assert not (tmp_path / "onnx" / "model.onnx").exists()


def test_blocks_are_as_large_as_groups_allow():
    sizes = {group: block_size(WeightGrid(group_size=group), 192) for group in (-1, 96, 64, 32, 24)}
    assert sizes == {-1: 64, 96: 32, 64: 64, 32: 32, 24: 0}


@pytest.mark.parametrize("int8_embeddings", [False, True])
def test_each_packed_weight_counts_as_one_parameter(int8_embeddings, tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path)
    decoder = {"int8_embeddings": int8_embeddings}
    export_decoder(parent, tmp_path / "graph", {**FIELDS, "decoder": decoder})
    parameters = sum(FAMILY.parameters(FAMILY.presets["tiny-llama"]).values())
    rotary_tables = 2 * 512 * 8
    graph = onnx.load(tmp_path / "graph" / "model.onnx")
    assert count_parameters(graph) == parameters + rotary_tables


@pytest.mark.parametrize("level", [1, 4])
def test_packed_weights_count_as_integers_only_with_rounded_activations(level, tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path)
    fields = {**FIELDS, "decoder": {"accuracy_level": level}}
    export_decoder(parent, tmp_path / "graph", fields)
    nodes = profile(tmp_path / "graph", {"input_ids": TOKENS}, 1, runs=2)
    sizes = FAMILY.parameters(FAMILY.presets["tiny-llama"])
    layers = sum(size for part, size in sizes.items() if "embed" not in part)
    packed = sum(node.weights for node in nodes if node.operator == "MatMulNBits")
    assert 0.99 * layers < packed <= layers  # norms are no products
    share = packed / (packed + 512 * 64) if level == 4 else 0.0
    assert integer_weight_share(nodes) == pytest.approx(share)
