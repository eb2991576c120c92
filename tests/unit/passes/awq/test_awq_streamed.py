"""Streamed checkpoints: every architecture is packed, killed runs resume, misfits fail early."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import compare_tensors
from compressor.errors import ModelError, NumericalError, RequirementError
from compressor.models.capabilities.folding import fold_scale
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.layer_recording import run_layer
from compressor.models.families.transformers.linear_groups import decoder_layer_sites
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.runtimes.formats import open_layers, recognize
from passes.awq.config import AwqConfig
from passes.awq.step import Awq
from tests.support.awq import (
    AUTOAWQ,
    CHECKPOINTS,
    COMPRESSED_TENSORS,
    TOKENS,
    artifact,
    pass_context,
    run_awq,
    save_checkpoint,
)
from tests.support.real_configs import PUBLISHED, small_config
from tests.support.training import Killed

PRESETS = CHECKPOINTS.presets


def kl_divergence(module, reference):
    with torch.inference_mode():
        log_p, log_q = (
            model(input_ids=torch.from_numpy(TOKENS))["logits"].log_softmax(-1)
            for model in (reference, module)
        )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_architecture_is_packed_with_little_loss(preset, tmp_path):
    parent = save_checkpoint(tmp_path / "parent", preset)
    reference = load_module(parent.model).float()
    out, output = run_awq(parent, tmp_path, {**COMPRESSED_TENSORS, "bits": 8})
    assert kl_divergence(load_module(out), reference) < 2e-3
    assert recognize(out).format.name == "packed"
    rows = output.summary["layers"]
    names = [name for site in decoder_layer_sites(PRESETS[preset].tree) for name in site.linears]
    assert [(row["layer"], row["linear"]) for row in rows] == [
        (number, name) for number in range(3) for name in names
    ]
    assert all(row["error"] > 0 and row["bits"] == 8 and 0.4 < row["range"] < 1.2 for row in rows)
    weights = sum(
        weight.numel()
        for name, weight in reference.named_parameters()
        if "layers" in name and name.endswith("proj.weight")
    )
    assert output.summary["packed_weights"] == weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_published_models_are_packed(name, tmp_path):
    config = CHECKPOINTS.Config.model_validate_json(json.dumps(small_config(name)))
    torch.manual_seed(0)
    CHECKPOINTS.save(CHECKPOINTS.build(config), config, tmp_path / "parent")
    reference = load_module(tmp_path / "parent").float()
    fields = {**COMPRESSED_TENSORS, "bits": 8, "group_size": 16}
    out, _ = run_awq(artifact(tmp_path / "parent"), tmp_path, fields)
    assert kl_divergence(load_module(out), reference) < 2e-3
    written, parent = (
        json.loads((folder / "config.json").read_bytes()) for folder in (out, tmp_path / "parent")
    )
    assert {k: v for k, v in written.items() if "token_id" in k or k == "text_config"} == {
        k: v for k, v in parent.items() if "token_id" in k or k == "text_config"
    }


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen2", "tiny-glm4v"])
def test_gptq_is_better_than_nearest(preset, tmp_path):
    parent = save_checkpoint(tmp_path / "parent", preset)
    reference = load_module(parent.model).float()
    fields = {**COMPRESSED_TENSORS, "bits": 3, "scaling": False, "error_compensation": 0.0}
    divergences = {}
    for refine in ("none", "gptq"):
        out, output = run_awq(parent, tmp_path / refine, {**fields, "refine": refine})
        divergences[refine] = kl_divergence(load_module(out), reference)
    assert divergences["gptq"] < 0.8 * divergences["none"]
    assert all(row["error"] < row["nearest_error"] for row in output.summary["layers"])


def test_mixed_precision_gives_bits_to_sensitive_layers(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    module = load_module(parent.model).float()
    # A large result of the second layer makes what the last layer adds small beside it.
    module.model.layers[1].mlp.down_proj.weight.data *= 60
    CHECKPOINTS.save(module, PRESETS["tiny-llama"], parent.model)
    divergences = {}
    for name, fields in (("mixed", {"effective_bits": 4.25}), ("uniform", {"bits": 3})):
        out, output = run_awq(parent, tmp_path / name, {**COMPRESSED_TENSORS, **fields})
        divergences[name] = kl_divergence(load_module(out), module)
    assert divergences["mixed"] < 0.5 * divergences["uniform"]
    fields = {**COMPRESSED_TENSORS, "effective_bits": 4.25, "symmetric": True}
    out, output = run_awq(parent, tmp_path / "symmetric", fields)
    bits = {(row["layer"], row["linear"]): row["bits"] for row in output.summary["layers"]}
    assert bits[1, "mlp.down_proj"] > bits[2, "mlp.down_proj"]
    assert 3.6 < output.summary["effective_bits"] <= 4.25
    assert bits[0, "self_attn.q_proj"] == bits[0, "self_attn.k_proj"] == bits[0, "self_attn.v_proj"]
    by_transformers = type(module).from_pretrained(out, dtype=torch.float32).eval()
    assert kl_divergence(by_transformers, load_module(out)) < 1e-6


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4v"])
def test_compressed_tensors_loads_the_checkpoint_with_the_same_outputs(preset, tmp_path):
    # With zero-points transformers 5.23 mistakes their packed shape for the unpacked one:
    # see test_packed_formats.
    fields = {**COMPRESSED_TENSORS, "symmetric": True}
    out, _ = run_awq(save_checkpoint(tmp_path / "parent", preset), tmp_path, fields)
    module = load_module(out)
    by_transformers = type(module).from_pretrained(out, dtype=torch.float32).eval()
    assert kl_divergence(by_transformers, module) < 1e-6


def test_config_json_describes_an_autoawq_checkpoint(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    out, _ = run_awq(parent, tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.layers.0.mlp.down_proj.qweight" in index
    assert "model.layers.0.mlp.down_proj.weight" not in index
    assert kl_divergence(load_module(out), load_module(parent.model)) < 0.05


@pytest.mark.parametrize("preset", PRESETS)
def test_folding_scales_does_not_change_the_outputs(preset, tmp_path):
    parent = save_checkpoint(tmp_path / "parent", preset)
    module = load_module(parent.model).float()
    folded = load_module(parent.model).float()
    config = PRESETS[preset]
    checkpoint = StreamedCheckpoint(parent.model, config.tree)
    for layer in folded.get_submodule(checkpoint.layers_name):
        for site in decoder_layer_sites(config.tree):
            width = layer.get_submodule(site.linears[0]).in_features
            source = site.source
            scale = torch.rand(width // source.repeats) + 0.5
            if source.repeats > 1:
                scale = scale.view(-1, 1, source.block).expand(-1, source.repeats, -1).reshape(-1)
            fold_scale(layer, source, scale, torch.float32)
            for name in site.linears:
                layer.get_submodule(name).weight.data *= scale
    with torch.inference_mode():
        expected, logits = (
            model(input_ids=torch.from_numpy(TOKENS))["logits"] for model in (module, folded)
        )
    assert torch.allclose(expected, logits, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", PRESETS)
def test_streamed_layers_compute_the_same_as_the_whole_model(preset, tmp_path):
    parent = save_checkpoint(tmp_path / "parent", preset)
    module = load_module(parent.model).float()
    checkpoint = StreamedCheckpoint(parent.model, PRESETS[preset].tree)
    ids = torch.from_numpy(TOKENS)
    expected = []
    stack = module.get_submodule(checkpoint.layers_name)
    stack[-1].register_forward_hook(
        lambda _, __, result: expected.append(result[0] if isinstance(result, tuple) else result)
    )
    with torch.inference_mode():
        module(input_ids=ids)
        ((hidden, arguments),) = checkpoint.first_layer_inputs(lambda: iter([{"input_ids": ids}]))
        for number, call in enumerate(arguments):
            layer = checkpoint.load(f"{checkpoint.layers_name}.{number}")
            hidden = run_layer(layer, hidden, call)
            checkpoint.unload(f"{checkpoint.layers_name}.{number}")
    assert torch.allclose(hidden, expected[0], atol=1e-6)
    assert all(weight.is_meta for weight in checkpoint.module.parameters())


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    uninterrupted, first = run_awq(parent, tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        run_awq(parent, tmp_path / "killed", killed_after=2)
    assert (tmp_path / "killed/work/layer-00001.safetensors").is_file()
    notes = []
    config, context = AwqConfig.model_validate(AUTOAWQ), pass_context(tmp_path / "killed")
    object.__setattr__(context, "note", notes.append)
    second = Awq().run(config, parent, tmp_path / "killed/out", context)
    assert notes == ["resuming after layer 2 of 3"]
    assert first.summary == second.summary
    for file in sorted(uninterrupted.iterdir()):
        assert file.read_bytes() == (tmp_path / "killed/out" / file.name).read_bytes(), file.name


def test_a_run_does_not_resume_from_another_artifact(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    with pytest.raises(Killed):
        run_awq(parent, tmp_path, killed_after=2)
    context, notes = pass_context(tmp_path), []
    object.__setattr__(context, "artifact_id", "ef56")
    object.__setattr__(context, "note", notes.append)
    Awq().run(AwqConfig.model_validate(AUTOAWQ), parent, tmp_path / "out", context)
    assert notes == []


def test_layers_that_do_not_fit_are_all_named_before_the_run(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    with pytest.raises(RequirementError) as caught:
        run_awq(parent, tmp_path, {**AUTOAWQ, "group_size": 128})
    message = str(caught.value)
    assert "model.layers.*.self_attn.q_proj: 64 inputs" in message
    assert "model.layers.*.mlp.down_proj: 96 inputs" in message
    assert "set `group_size` to one that fits: 32, 16, -1" in message


def test_weights_beyond_the_range_of_float16_are_an_error(tmp_path):
    parent = save_checkpoint(tmp_path / "parent", "tiny-qwen3")
    module = load_module(parent.model)
    module.lm_head.weight.data[3, 5] = 1e6
    CHECKPOINTS.save(module, PRESETS["tiny-qwen3"], parent.model)
    with pytest.raises(
        NumericalError, match=r"lm_head.weight holds values up to 1e\+06, too large for float16"
    ):
        run_awq(parent, tmp_path)


def test_missing_and_misshapen_tensors_are_all_named(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    file = tmp_path / "parent/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 64)
    save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        run_awq(parent, tmp_path)
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert (
        "model.layers.2.mlp.up_proj.weight: [3, 64] in the file, [96, 64] in the model" in message
    )


def test_transformers_finds_no_missing_and_no_unexpected_tensors(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    out, _ = run_awq(parent, tmp_path, {**COMPRESSED_TENSORS, "symmetric": True})
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_only_packed_layers_add_error_beside_the_parent(tmp_path):
    parent = save_checkpoint(tmp_path / "parent")
    folder, _ = run_awq(parent, tmp_path / "awq")
    comparison = compare_layers(
        open_layers("torch", parent.model, 1),
        open_layers("packed", folder, 1),
        {"input_ids": TOKENS[:4]},
    )
    added = {row.layer: row.added for row in comparison.layers}
    linears = {name for name in added if "proj" in name}
    assert len(linears) >= 14
    assert all(added[name] for name in linears)
    assert added["model.embed_tokens"] < 1e-6, "rounding to float16"
    pairs = {
        pair.name: pair for pair in compare_tensors(recognize(parent.model), recognize(folder))
    }
    down_proj = pairs["model.layers.0.mlp.down_proj.weight"]
    assert down_proj.snr_db > 5, "scales were folded into the layer before it"
    assert pairs["model.embed_tokens.weight"].snr_db > 70
