"""Built decoders of every architecture: what torch says, with the integers that were packed, usable by others."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from pydantic import ValidationError

from calibration.sources.arrays import ArrayDataset
from compressor.engine.contract import PassContext, PlanContext
from compressor.errors import DataError, ParityError, RequirementError, UsageError
from compressor.graphs.decoder import build as building
from compressor.graphs.decoder.weights import Weights, block_size
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.family import Transformers
from compressor.models.quantized.weight_grid import WeightGrid
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.cost import count_parameters
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.low_precision import integer_weight_share
from compressor.runtimes.onnxruntime.profile import profile
from passes.export_onnx.decoder.caching import turned_sizes
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
from tests.support.awq import run_awq

FAMILY = Transformers()
TOKENS = np.random.default_rng(0).integers(3, 490, (4, 48))
FIELDS = {"parity": {"data": "text"}}
CALIBRATION = {"data": "text", "num_samples": 12, "batch_size": 4}


def parent_in(folder, preset, tree=None):
    torch.manual_seed(1)
    config = FAMILY.presets[preset]
    if tree is not None:
        config = type(config).model_validate(config.model_dump() | tree)
    module = FAMILY.build(config)
    for weight in module.parameters():  # norms and biases that say something, scores that differ
        weight.data = (
            weight.data + 0.2 * torch.randn_like(weight) if weight.ndim == 1 else 3 * weight.data
        )
    FAMILY.save(module, config, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="torch"))


def exported(parent, out, fields=FIELDS, dataset=None):
    out.mkdir(parents=True)
    notes = []
    context = PassContext(
        artifacts={},
        data={"text": dataset or ArrayDataset({"input_ids": TOKENS}, ("input_ids",))}.__getitem__,
        work=out,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd34",
        progress=lambda *_: None,
        note=notes.append,
    )
    config, step = ExportOnnxConfig.model_validate(fields), ExportOnnx()
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return output, notes


def awq(parent, folder, **fields):
    out, _ = run_awq(parent, folder, {"group_size": 32, "calibration": CALIBRATION, **fields})
    return SimpleNamespace(model=out, manifest=SimpleNamespace(id="ef56", kind="packed"))


def initializers(folder):
    return {
        one.name: onnx.numpy_helper.to_array(one)
        for one in onnx.load(folder / "model.onnx").graph.initializer
    }


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_answers_as_torch_does_in_standard_operators(preset, tmp_path):
    fields = {**FIELDS, "decoder": {"target": "portable"}}
    output, _ = exported(parent_in(tmp_path / "parent", preset), tmp_path / "out", fields)
    assert [one["way"] for one in output.summary["parity"]] == [
        "windows",
        "token by token",
        "padded",
    ]
    assert all(one["max_abs"] < 1e-4 and one["same"] == 1 for one in output.summary["parity"])
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    assert not (tmp_path / "out" / "genai_config.json").exists()


@pytest.mark.parametrize(
    "fields", [{}, {"symmetric": True}, {"bits": 8}], ids=["4 bits", "symmetric", "8 bits"]
)
def test_standard_operators_carry_the_integers_too(fields, tmp_path):
    parent = awq(
        parent_in(tmp_path / "parent", "tiny-glm4v"),
        tmp_path,
        format="compressed-tensors",
        **fields,
    )
    output, _ = exported(
        parent,
        tmp_path / "onnx",
        {**FIELDS, "decoder": {"target": "portable", "int8_tables": True}},
    )
    assert max(one["kl"] for one in output.summary["parity"]) < 1e-3
    tree = json.loads((parent.model / "config.json").read_text())
    weights, found = Weights(parent.model, tree), initializers(tmp_path / "onnx")
    one = weights.packed("model.language_model.layers.1.mlp.down_proj")
    held = found["layers.1.mlp.down_proj.data"].astype(np.int16).T
    middle = one.grid.middle if one.grid.symmetric else 0
    assert np.array_equal(held + middle, one.integers_OI.numpy().astype(np.int16))
    assert ("layers.1.mlp.down_proj.zeros" in found) == (not one.grid.symmetric)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_answers_as_torch_does(preset, tmp_path):
    output, _ = exported(parent_in(tmp_path / "parent", preset), tmp_path / "out")
    ways = {one["way"]: one for one in output.summary["parity"]}
    assert set(ways) == {"windows", "token by token", "padded"}
    assert all(one["max_abs"] < 1e-4 and one["same"] == 1 for one in ways.values())
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert sum(node.op_type == "GroupQueryAttention" for node in graph.node) == 3
    assert {one.name for one in graph.input} >= {
        "input_ids",
        "attention_mask",
        "past_key_values.2.value",
    }


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_keeps_keys_and_values_in_8_bits(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    fields = {**FIELDS, "decoder": {"int8_kv_cache": {"data": "text"}}}
    output, _ = exported(parent, tmp_path / "out", fields)
    assert output.summary["kv_cache"] == "int8"
    ways = {one["way"]: one for one in output.summary["parity"]}
    assert set(ways) == {"windows", "token by token", "padded"}
    assert all(0 < one["kl"] < 2e-3 for one in ways.values())
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    kept = [
        one
        for one in (*graph.input, *graph.output)
        if one.name.startswith(("past_key_values.", "present."))
    ]
    assert {one.type.tensor_type.elem_type for one in kept} == {onnx.TensorProto.INT8}
    decoder, peaks = OnnxDecoder(tmp_path / "out", 1, capacity=48), []
    for window in TOKENS:
        decoder.reset()
        last = decoder.forward(window[None])[0, -1]
        said = decoder.kv_cache().items()
        peaks.append(
            [
                np.abs(array.astype(int)).max(axis=(0, 2))
                for name, array in said
                if name.endswith("value")
            ]
        )
    assert (
        np.max(peaks, axis=0).min() > 115
    )  # a scale for each value of a head, which its largest nearly fills
    with open_session(
        "onnx", tmp_path / "out", threads=1
    ) as session:  # which the other commands measure
        assert np.abs(session.run({"input_ids": TOKENS})["logits"][-1, -1] - last).max() < 1e-4


@pytest.mark.parametrize("in_pairs", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("width", [8, 16])
def test_a_key_fits_its_scale_wherever_it_stands(in_pairs, width):
    """Keys of tokens at places 0 to 9 give the scales; the same tokens stand at any other place."""
    keys = np.random.default_rng(0).normal(size=(2, 10, 16))
    limits = turned_sizes(np.abs(keys), width, in_pairs=in_pairs).max(axis=1)
    a, b = (
        (slice(0, width, 2), slice(1, width, 2))
        if in_pairs
        else (slice(width // 2), slice(width // 2, width))
    )
    for angle in np.linspace(0, 2 * np.pi, 50):
        turned = keys.copy()
        turned[..., a] = np.cos(angle) * keys[..., a] - np.sin(angle) * keys[..., b]
        turned[..., b] = np.cos(angle) * keys[..., b] + np.sin(angle) * keys[..., a]
        assert (np.abs(turned).max(axis=1) <= limits + 1e-12).all()
    assert np.array_equal(limits[:, width:], np.abs(keys).max(axis=1)[:, width:])


def test_keys_and_values_are_calibrated_on_windows_from_all_over_a_set(tmp_path):
    seen = []

    class Watched(ArrayDataset):
        def batch(self, indices):
            seen.append(indices.tolist())
            return super().batch(indices)

    many = Watched({"input_ids": np.tile(TOKENS, (8, 1))[:31]}, ("input_ids",))
    fields = {**FIELDS, "decoder": {"int8_kv_cache": {"data": "text", "num_samples": 16}}}
    exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields, many)
    assert seen == [[0, 1, 2, 3], [31 * one // 16 for one in range(16)]]


def test_windows_longer_than_the_context_are_refused(tmp_path):
    fields = {**FIELDS, "decoder": {"context_length": 32}}
    with pytest.raises(DataError, match="windows of 48 tokens, and the graph attends to 32"):
        exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields)


def test_fields_of_a_language_model_are_refused_for_others():
    config = ExportOnnxConfig.model_validate({"decoder": {"int8_tables": True}})
    facts = ModelFacts(family="autoglm-phone", parameters=10, size_bytes=40)
    with pytest.raises(RequirementError, match="of the family autoglm-phone: `int8_tables`"):
        ExportOnnx().estimate(config, facts, PlanContext({"parent": facts}))


def test_keys_and_values_in_8_bits_are_of_onnx_runtime_alone():
    with pytest.raises(ValidationError, match="`int8_kv_cache` wants ONNX Runtime's own attention"):
        ExportOnnxConfig.model_validate(
            {"decoder": {"target": "portable", "int8_kv_cache": {"data": "text"}}}
        )


def test_a_window_longer_than_the_sliding_one(tmp_path):
    """Gemma's layers look 32 tokens back; the window has 48, and another 32 would be seen."""
    parent = parent_in(tmp_path / "parent", "tiny-gemma3")
    exported(parent, tmp_path / "out")
    other = json.loads((tmp_path / "parent" / "config.json").read_text())
    (tmp_path / "parent" / "config.json").write_text(json.dumps(other | {"sliding_window": 8}))
    with open_session("onnx", tmp_path / "out", threads=1) as ours:
        said = ours.run({"input_ids": TOKENS})["logits"]
    with open_session("torch", parent.model, threads=1) as theirs:
        assert np.abs(said - theirs.run({"input_ids": TOKENS})["logits"]).max() > 1e-2


@pytest.mark.parametrize(
    "preset", ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3", "tiny-glm4v"]
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"format": "compressed-tensors", "symmetric": True},
        {"format": "compressed-tensors", "bits": 8},
    ],
    ids=["gemm", "symmetric", "8 bits"],
)
def test_the_integers_are_carried_over_as_they_are(preset, fields, tmp_path):
    parent = awq(parent_in(tmp_path / "parent", preset), tmp_path, **fields)
    output, _ = exported(parent, tmp_path / "onnx", {**FIELDS, "decoder": {"accuracy_level": 1}})
    assert max(one["max_abs"] for one in output.summary["parity"]) < 1e-3
    tree = json.loads((parent.model / "config.json").read_text())
    weights, found = Weights(parent.model, tree), initializers(tmp_path / "onnx")
    root = (FAMILY.presets[preset].tree.get("text_config") and "model.language_model") or "model"
    names = [one for one in found if one.endswith(".data") and one.startswith("layers.")]
    assert len(names) == 12
    for name in names:
        site, _, linears = name.removesuffix(".data").rpartition(".")
        parts = linears.removesuffix("_proj").split("_proj_")
        one = [weights.packed(f"{root}.{site}.{part}_proj") for part in parts]
        bits = one[0].grid.bits
        each = 8 // bits
        spread = np.stack(
            [found[name] >> (bits * place) & (2**bits - 1) for place in range(each)], axis=-1
        )
        assert np.array_equal(
            spread.reshape(len(spread), -1), torch.cat([p.integers_OI for p in one]).numpy()
        )
        scales = found[name.replace(".data", ".scales")]
        assert np.array_equal(scales, torch.cat([p.scales_OG for p in one]).numpy())
        zeros = name.replace(".data", ".zeros")
        assert (zeros in found) == (not one[0].grid.symmetric)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_scales_in_bfloat16_are_carried_over_too(target, tmp_path):
    """As every checkpoint in bfloat16 has them."""
    small = awq(
        parent_in(tmp_path / "parent", "tiny-qwen3"),
        tmp_path / "p",
        format="compressed-tensors",
        dtype="bfloat16",
    )
    level = {"accuracy_level": 1} if target == "onnxruntime" else {}
    output, _ = exported(
        small, tmp_path / "out", {**FIELDS, "decoder": {"target": target, **level}}
    )
    assert all(one["kl"] < (1e-9 if level else 1e-3) for one in output.summary["parity"])
    held = initializers(tmp_path / "out")
    weight = load_module(small.model).model.layers[0].mlp.down_proj.weight.detach().numpy()
    scales = held["layers.0.mlp.down_proj.scales"]
    assert scales.dtype == np.float32
    steps = (
        weight[0, :32] / scales[0, 0]
    )  # the first output's first group, whichever axis comes first
    assert np.array_equal(steps, steps.round())


def test_integers_of_the_activations_only_where_they_are_near_enough(tmp_path):
    parent = awq(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path)
    output, notes = exported(parent, tmp_path / "usual")
    assert output.summary["accuracy_level"] == 4
    assert not notes
    output, notes = exported(parent, tmp_path / "strict", {"parity": {"data": "text", "kl": 1e-7}})
    assert output.summary["accuracy_level"] == 1
    assert "KL" in notes[0]
    with pytest.raises(ParityError, match="KL"):
        exported(
            parent,
            tmp_path / "never",
            {"parity": {"data": "text", "kl": 1e-7}, "decoder": {"accuracy_level": 4}},
        )


def test_tables_in_8_bits_are_stored_once(tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-llama")
    exported(parent, tmp_path / "whole")
    output, _ = exported(
        parent,
        tmp_path / "small",
        {**FIELDS, "decoder": {"int8_tables": True, "accuracy_level": 1}},
    )
    assert max(one["kl"] for one in output.summary["parity"]) < 1e-3
    found = initializers(tmp_path / "small")
    assert found["head.data"].shape == (512, 1, 64)
    assert not [
        name for name, value in found.items() if value.size == 512 * 64 and name != "head.data"
    ]
    assert "embed_tokens" in initializers(tmp_path / "whole")
    with pytest.raises(RequirementError, match="int8_tables"):
        tree = {"hidden_size": 72, "num_attention_heads": 6}
        exported(
            parent_in(tmp_path / "odd", "tiny-llama", tree),
            tmp_path / "no",
            {**FIELDS, "decoder": {"int8_tables": True}},
        )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bits": 3}, "3 bits"),
        ({"group_size": 8, "symmetric": True}, "groups of 8"),
        ({"bits": 2, "target": "portable"}, "2 bits"),
    ],
)
def test_integers_that_the_operator_cannot_hold_are_refused_before_anything_is_built(
    fields, told, tmp_path
):
    target = fields.pop("target", "onnxruntime")
    parent = awq(
        parent_in(tmp_path / "parent", "tiny-llama"),
        tmp_path,
        format="compressed-tensors",
        **fields,
    )
    with pytest.raises(RequirementError, match=told) as refused:
        exported(parent, tmp_path / "onnx", {**FIELDS, "decoder": {"target": target}})
    assert str(refused.value).count("_proj") >= 12
    assert not (tmp_path / "onnx" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("tree", "fields", "told"),
    [
        ({"hidden_act": "relu"}, {}, "the activation relu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            {},
            "kind dynamic",
        ),
        ({}, {"decoder": {"context_length": 513}}, "512 positions"),
    ],
)
def test_what_is_not_built_is_named(tree, fields, told, tmp_path):
    with pytest.raises(RequirementError, match=told):
        exported(
            parent_in(tmp_path / "parent", "tiny-llama", tree), tmp_path / "out", FIELDS | fields
        )


def test_a_wrong_graph_is_no_result(tmp_path, monkeypatch):
    """A builder that forgets a part: every way of running it is compared."""
    monkeypatch.setattr(building.DecoderGraph, "_normed", lambda self, x, name: x)
    with pytest.raises(ParityError) as refused:
        exported(parent_in(tmp_path / "parent", "tiny-qwen3"), tmp_path / "out")
    assert all(way in str(refused.value) for way in ("windows", "token by token", "padded"))


def test_others_run_it_with_onnx_runtime_alone(tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-qwen2")
    exported(parent, tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", options)
    told = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    inside, outside = told["decoder"]["inputs"], told["decoder"]["outputs"]
    layers, heads, width = (
        told["decoder"][f"{n}"] for n in ("num_hidden_layers", "num_key_value_heads", "head_size")
    )
    parts = [(i, k) for i in range(layers) for k in ("key", "value")]
    state = {
        inside[f"past_{k}_names"].replace("%d", str(i)): np.zeros((1, heads, 0, width), np.float32)
        for i, k in parts
    }
    names = [one.name for one in session.get_outputs()]
    module, ids = load_module(parent.model), [5, 6, 7]
    for _ in range(6):
        known = next(iter(state.values())).shape[2]
        feeds = {
            "input_ids": np.array([ids[known:]]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            **state,
        }
        said = dict(zip(names, session.run(None, feeds), strict=True))
        state = {
            inside[f"past_{k}_names"].replace("%d", str(i)): said[
                outside[f"present_{k}_names"].replace("%d", str(i))
            ]
            for i, k in parts
        }
        ids.append(int(said[outside["logits"]][0, -1].argmax()))
    theirs = module.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert theirs[0].tolist() == ids


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_onnxruntime_genai_says_what_torch_says(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    exported(parent, tmp_path / "out")
    theirs = load_module(parent.model).generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert said_by_genai(tmp_path / "out", 8) == theirs[0].tolist()


@pytest.mark.parametrize(
    "decoder", [{"int8_tables": True}, {"int8_kv_cache": {"data": "text"}}], ids=str
)
def test_onnxruntime_genai_reads_integers_too(decoder, tmp_path):
    exported(
        awq(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path),
        tmp_path / "graph",
        {**FIELDS, "decoder": decoder},
    )
    ours, ids = OnnxDecoder(tmp_path / "graph", 1, capacity=16), [5, 6, 7]
    for start in (0, *range(3, 10)):
        ids.append(int(ours.forward(np.array([ids[start:]]))[0, -1].argmax()))
    assert said_by_genai(tmp_path / "graph", 8) == ids


def said_by_genai(folder, count):
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array([5, 6, 7], dtype=np.int32))
    for _ in range(count):
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_decoder_forgets_and_has_only_so_much_room(target, tmp_path):
    fields = {**FIELDS, "decoder": {"target": target}}
    exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields)
    decoder = OnnxDecoder(tmp_path / "out", 1, capacity=10)
    first = decoder.forward(TOKENS[:1, :8]).copy()
    assert first.shape == (1, 1, 512)
    decoder.forward(TOKENS[:1, 8:9])
    with pytest.raises(UsageError, match="11 tokens, and the key-value cache holds 10"):
        decoder.forward(TOKENS[:1, 9:11])
    decoder.forward(TOKENS[:1, 9:10])  # what was refused is not counted
    with pytest.raises(UsageError, match="11 tokens, and the key-value cache holds 10"):
        decoder.forward(TOKENS[:1, 10:11])
    decoder.reset()
    assert np.array_equal(decoder.forward(TOKENS[:1, :8]), first)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_several_long_prompts_at_once_say_what_each_says_alone(target, tmp_path):
    fields = {**FIELDS, "decoder": {"target": target}}
    exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields)
    ids = np.random.default_rng(1).integers(3, 490, (2, 150))
    both, alone = (
        OnnxDecoder(tmp_path / "out", 1, batch_size=2, capacity=160),
        OnnxDecoder(tmp_path / "out", 1, capacity=160),
    )
    together = both.forward(ids)[:, 0].copy()
    if target == "onnxruntime":
        with pytest.raises(UsageError, match="reads one at a time there"):
            both.forward(ids[:, :2])
    after = both.forward(ids[:, :1])[:, 0]
    for row in range(2):
        alone.reset()
        np.testing.assert_allclose(alone.forward(ids[row : row + 1])[0, 0], together[row], atol=1e-4)
        np.testing.assert_allclose(alone.forward(ids[row : row + 1, :1])[0, 0], after[row], atol=1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_decoder_goes_on_from_where_it_was(target, tmp_path):
    fields = {**FIELDS, "decoder": {"target": target}}
    exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", fields)
    decoder = OnnxDecoder(tmp_path / "out", 1, capacity=40)
    decoder.forward(TOKENS[:1, :20])
    wanted = decoder.forward(TOKENS[:1, 20:22]).copy()
    decoder.forward(TOKENS[:1, 30:35])
    decoder.truncate(20)
    np.testing.assert_allclose(decoder.forward(TOKENS[:1, 20:22]), wanted, atol=1e-5)


@pytest.mark.parametrize("tokens", [129, 256, 300])
def test_a_long_prompt_is_read_in_pieces_and_says_the_same(tokens, tmp_path):
    exported(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path / "out", FIELDS)
    decoder = OnnxDecoder(tmp_path / "out", 1, capacity=tokens + 1)
    ids = np.random.default_rng(1).integers(3, 490, (1, tokens))
    whole = decoder.forward(ids, logits_to_keep=0)[:, -2:].copy()
    after = decoder.forward(ids[:, :1]).copy()
    decoder.reset()
    np.testing.assert_allclose(decoder.forward(ids, logits_to_keep=2), whole, atol=1e-4)
    np.testing.assert_allclose(decoder.forward(ids[:, :1]), after, atol=1e-4)


def test_blocks_are_as_large_as_groups_allow():
    sizes = {group: block_size(WeightGrid(group_size=group), 192) for group in (-1, 96, 64, 32, 24)}
    assert sizes == {-1: 64, 96: 32, 64: 64, 32: 32, 24: 0}


def test_weights_of_a_large_model_lie_beside_the_graph(tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-llama")
    output, _ = exported(parent, tmp_path / "out", {**FIELDS, "external_data_threshold_mb": 0})
    assert output.summary["external_data"]
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.2 * (
        tmp_path / "out" / "model.onnx.data"
    ).stat().st_size
    whole, _ = exported(parent, tmp_path / "whole")
    assert whole.summary["parity"] == output.summary["parity"]


@pytest.mark.parametrize("tables", [False, True])
def test_packed_weights_are_counted_one_by_one(tables, tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-llama")
    small = awq(parent, tmp_path)
    exported(small, tmp_path / "graph", {**FIELDS, "decoder": {"int8_tables": tables}})
    config = FAMILY.presets["tiny-llama"]
    turned = 2 * 512 * 8  # cos and sin
    assert (
        count_parameters(onnx.load(tmp_path / "graph" / "model.onnx"))
        == sum(FAMILY.parameters(config).values()) + turned
    )


@pytest.mark.parametrize("level", [1, 4])
def test_gain_knows_what_is_multiplied_as_integers(level, tmp_path):
    parent = awq(parent_in(tmp_path / "parent", "tiny-llama"), tmp_path)
    exported(parent, tmp_path / "graph", {**FIELDS, "decoder": {"accuracy_level": level}})
    nodes = profile(tmp_path / "graph", {"input_ids": TOKENS}, 1, runs=2)
    inside = sum(
        size
        for part, size in FAMILY.parameters(FAMILY.presets["tiny-llama"]).items()
        if "embed" not in part
    )
    packed = sum(node.weights for node in nodes if node.operator == "MatMulNBits")
    assert 0.99 * inside < packed <= inside  # norms are no products
    assert integer_weight_share(nodes) == pytest.approx(
        packed / (packed + 512 * 64) if level == 4 else 0.0
    )


def test_building_twice_gives_the_same_bytes(tmp_path):
    parent = awq(parent_in(tmp_path / "parent", "tiny-gemma3"), tmp_path)
    for name in ("one", "two"):
        exported(parent, tmp_path / name, {**FIELDS, "decoder": {"int8_tables": True}})
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (
        tmp_path / "two" / "model.onnx"
    ).read_bytes()
