"""The whole pass on small checkpoints of every architecture: loads elsewhere, resumes, and is refused where it must be."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibration.sources.arrays import ArrayDataset
from compressor.engine.contract import PassContext
from compressor.errors import DataError, ModelError, NumericalError, RequirementError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.linears import sites_of
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.runtimes.formats import recognize
from passes.awq.site import fold
from passes.awq.step import Awq, AwqConfig
from tests.support.training import Killed

FAMILY = Transformers()
TOKENS = np.random.default_rng(0).integers(3, 490, (12, 16))
FIELDS = {"group_size": 32, "calibration": {"data": "text", "num_samples": 12, "batch_size": 4}}
CT = {**FIELDS, "format": "compressed-tensors"}


def parent_in(folder, preset="tiny-llama"):
    torch.manual_seed(1)
    config = FAMILY.presets[preset]
    module = FAMILY.build(config)
    for weight in module.parameters():  # real models have channels that matter more than others
        if weight.ndim == 2:
            weight.data *= 1 + 3 * torch.rand(1, weight.shape[1]) ** 4
    FAMILY.save(module, config, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="torch"))


def context(folder, killed_after=None, **sets):
    data = {"text": ArrayDataset({"input_ids": TOKENS}, ("input_ids",))} | sets

    def progress(what, done, total, figures):
        if done == killed_after:
            raise Killed

    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return PassContext(
        artifacts={},
        data=data.__getitem__,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd34",
        progress=progress,
        note=lambda line: None,
    )


def packed(parent, folder, fields=FIELDS, **options):
    config = AwqConfig.model_validate(fields)
    given = context(folder, **options)
    step = Awq()
    step.requires(config, parent, given)
    output = step.run(config, parent, folder / "out", given)
    step.ensures(config, parent, folder / "out", given)
    return folder / "out", output


def divergence(module, other):
    with torch.inference_mode():
        ours, theirs = (
            one(input_ids=torch.from_numpy(TOKENS))["logits"].log_softmax(-1)
            for one in (module, other)
        )
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_every_architecture_is_packed_and_answers_nearly_as_before(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    whole = load_module(parent.model).float()
    out, output = packed(parent, tmp_path, {**CT, "bits": 8})
    assert divergence(load_module(out), whole) < 2e-3
    assert recognize(out).format.name == "packed"
    rows = output.summary["layers"]
    names = [name for site in sites_of(FAMILY.presets[preset].tree) for name in site.linears]
    assert [(row["layer"], row["linear"]) for row in rows] == [
        (number, name) for number in range(3) for name in names
    ]
    assert all(row["error"] > 0 and row["bits"] == 8 and 0.4 < row["range"] < 1.2 for row in rows)
    weights = sum(
        one.numel()
        for name, one in whole.named_parameters()
        if "layers" in name and name.endswith("proj.weight")
    )
    assert output.summary["packed_weights"] == weights


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen2", "tiny-glm4v"])
def test_feedback_pays(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    whole = load_module(parent.model).float()
    nearest = {**CT, "bits": 3, "scaling": False, "refine": "none", "drift": 0.0}
    found = {}
    for name, more in (("nearest", {}), ("refined", {"refine": "gptq"})):
        out, output = packed(parent, tmp_path / name, {**nearest, **more})
        found[name] = divergence(load_module(out), whole)
    assert found["refined"] < 0.8 * found["nearest"]
    assert all(row["error"] < row["nearest_error"] for row in output.summary["layers"])


def test_bits_go_where_rounding_hurts(tmp_path):
    parent = parent_in(tmp_path / "parent")
    module = load_module(parent.model).float()
    module.model.layers[
        1
    ].mlp.down_proj.weight.data *= 60  # so what the last layer adds is small beside it
    FAMILY.save(module, FAMILY.presets["tiny-llama"], parent.model)
    found = {}
    for name, fields in (("mixed", {"effective_bits": 4.25}), ("even", {"bits": 3})):
        out, output = packed(parent, tmp_path / name, {**CT, **fields})
        found[name] = divergence(load_module(out), module)
    assert found["mixed"] < 0.5 * found["even"]
    out, output = packed(
        parent, tmp_path / "again", {**CT, "effective_bits": 4.25, "symmetric": True}
    )
    bits = {(row["layer"], row["linear"]): row["bits"] for row in output.summary["layers"]}
    assert bits[1, "mlp.down_proj"] > bits[2, "mlp.down_proj"]
    assert 3.6 < output.summary["effective_bits"] <= 4.25
    assert bits[0, "self_attn.q_proj"] == bits[0, "self_attn.k_proj"] == bits[0, "self_attn.v_proj"]
    theirs = type(module).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(theirs, load_module(out)) < 1e-6


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4v"])
def test_compressed_tensors_loads_it_and_answers_alike(preset, tmp_path):
    # With zero-points, transformers 5.23 takes their shape for that of the unpacked ones: see test_packed_formats.
    out, _ = packed(parent_in(tmp_path / "parent", preset), tmp_path, {**CT, "symmetric": True})
    ours = load_module(out)
    theirs = type(ours).from_pretrained(out, dtype=torch.float32).eval()
    assert divergence(theirs, ours) < 1e-6


def test_awq_is_what_config_json_says(tmp_path):
    parent = parent_in(tmp_path / "parent")
    out, _ = packed(parent, tmp_path)
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
    assert divergence(load_module(out), load_module(parent.model)) < 0.05


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_folding_leaves_the_answers_as_they_were(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    module = load_module(parent.model).float()
    before = divergence(module, module)
    folded = load_module(parent.model).float()
    config = FAMILY.presets[preset]
    checkpoint = StreamedCheckpoint(parent.model, config.tree)
    for layer in folded.get_submodule(checkpoint.layers_name):
        for site in sites_of(config.tree):
            width = layer.get_submodule(site.linears[0]).in_features
            source = site.source
            scale = torch.rand(width // source.repeats) + 0.5
            if source.repeats > 1:
                scale = scale.view(-1, 1, source.block).expand(-1, source.repeats, -1).reshape(-1)
            fold(layer, source, scale, torch.float32)
            for name in site.linears:
                layer.get_submodule(name).weight.data *= scale
    with torch.inference_mode():
        answers = [one(input_ids=torch.from_numpy(TOKENS))["logits"] for one in (module, folded)]
    assert before == pytest.approx(0, abs=1e-7)
    assert torch.allclose(*answers, atol=1e-5 * float(answers[0].abs().max()))


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_layers_one_by_one_are_the_whole_model(preset, tmp_path):
    parent = parent_in(tmp_path / "parent", preset)
    module = load_module(parent.model).float()
    checkpoint = StreamedCheckpoint(parent.model, FAMILY.presets[preset].tree)
    ids = torch.from_numpy(TOKENS)
    seen = []
    stack = module.get_submodule(checkpoint.layers_name)
    stack[-1].register_forward_hook(
        lambda _, __, result: seen.append(result[0] if isinstance(result, tuple) else result)
    )
    with torch.inference_mode():
        module(input_ids=ids)
        ((hidden, arguments),) = checkpoint.entering(lambda: iter([{"input_ids": ids}]))
        for number, (args, kwargs) in enumerate(arguments):
            layer = checkpoint.load(f"{checkpoint.layers_name}.{number}")
            found = layer(hidden, *args, **kwargs)
            hidden = found[0] if isinstance(found, tuple) else found
            checkpoint.unload(f"{checkpoint.layers_name}.{number}")
    assert torch.allclose(hidden, seen[0], atol=1e-6)
    assert all(weight.is_meta for weight in checkpoint.module.parameters())


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    parent = parent_in(tmp_path / "parent")
    whole, first = packed(parent, tmp_path / "whole")
    with pytest.raises(Killed):
        packed(parent, tmp_path / "killed", killed_after=2)
    assert (tmp_path / "killed/work/layer-00001.safetensors").is_file()
    seen = []
    config, given = AwqConfig.model_validate(FIELDS), context(tmp_path / "killed")
    object.__setattr__(given, "note", seen.append)
    second = Awq().run(config, parent, tmp_path / "killed/out", given)
    assert seen == ["going on after layer 2 of 3"]
    assert first.summary == second.summary
    for file in sorted(whole.iterdir()):
        assert file.read_bytes() == (tmp_path / "killed/out" / file.name).read_bytes(), file.name


def test_another_run_does_not_go_on_from_it(tmp_path):
    parent = parent_in(tmp_path / "parent")
    with pytest.raises(Killed):
        packed(parent, tmp_path, killed_after=2)
    given, seen = context(tmp_path), []
    object.__setattr__(given, "artifact_id", "ef56")
    object.__setattr__(given, "note", seen.append)
    Awq().run(AwqConfig.model_validate(FIELDS), parent, tmp_path / "out", given)
    assert seen == []


def test_what_does_not_fit_is_told_at_once(tmp_path):
    parent = parent_in(tmp_path / "parent")
    with pytest.raises(RequirementError) as caught:
        packed(parent, tmp_path, {**FIELDS, "group_size": 128})
    told = str(caught.value)
    assert (
        "model.layers.*.self_attn.q_proj: 64 inputs are no multiple of the group size 128" in told
    )
    assert "model.layers.*.mlp.down_proj: 96 inputs are no multiple" in told
    assert "group sizes that fit: 32, 16" in told


def test_fewer_samples_than_asked_for(tmp_path):
    parent = parent_in(tmp_path / "parent")
    few = {**FIELDS, "calibration": {"data": "text", "num_samples": 13}}
    with pytest.raises(DataError, match="has 12 samples, and `num_samples` asks for 13"):
        packed(parent, tmp_path, few)


def test_weights_that_float16_does_not_hold(tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-qwen3")
    module = load_module(parent.model)
    module.lm_head.weight.data[3, 5] = 1e6
    FAMILY.save(module, FAMILY.presets["tiny-qwen3"], parent.model)
    with pytest.raises(
        NumericalError, match=r"lm_head.weight holds values up to 1e\+06, too large for float16"
    ):
        packed(parent, tmp_path)


def test_tensors_that_are_missing_or_of_another_shape(tmp_path):
    parent = parent_in(tmp_path / "parent")
    file = tmp_path / "parent/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 64)
    save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        packed(parent, tmp_path)
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "model.layers.2.mlp.up_proj.weight: [3, 64] in the file, [96, 64] in the model" in str(
        caught.value
    )


def test_contradictions_in_the_config():
    with pytest.raises(ValueError, match="bits and symmetric contradict"):
        AwqConfig.model_validate({"bits": 3, "symmetric": True})
    with pytest.raises(ValueError, match="group_size 0"):
        AwqConfig.model_validate({"group_size": 0})


def test_the_estimate_follows_the_layer_and_not_the_model():
    from compressor.engine.contract import PlanContext
    from compressor.models.facts import ModelFacts

    def facts(layers):
        config = replace_fields(
            FAMILY.presets["tiny-llama"], {("num_hidden_layers",): layers, ("hidden_size",): 512}
        )
        parameters = sum(FAMILY.parameters(config).values())
        return ModelFacts(
            "transformers", config.model_dump(mode="json"), parameters, 1, 4 * parameters
        )

    few, many = (
        Awq().estimate(AwqConfig.model_validate(FIELDS), facts(layers), PlanContext({}))
        for layers in (2, 40)
    )
    assert few.peak_memory_bytes == many.peak_memory_bytes
    assert many.model.size_bytes > 5 * few.model.size_bytes


def test_transformers_own_class_reads_the_rest(tmp_path):
    """Names and shapes are the library's: nothing is missing, nothing too much, but for what is packed."""
    parent = parent_in(tmp_path / "parent")
    out, _ = packed(parent, tmp_path, {**CT, "symmetric": True})
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
