"""Models that are quantized as a whole: blocks of several parts, and padding of several kinds."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from calibration.sources.arrays import ArrayDataset
from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import compare_tensors
from compressor.errors import CompressError, ModelError, RequirementError, UsageError
from compressor.models.capabilities.folding import fold_scale
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.runtimes.formats import format_named, open_layers, open_session, recognize
from passes.awq import whole_run
from passes.awq.linear_layers import find_linears
from tests.support.awq import (
    BERT,
    COMPRESSED_TENSORS,
    MODELS,
    NEAREST,
    PHONE,
    SAMPLES,
    SMALL_PHONE,
    TEXTS,
    family_data,
    family_samples,
    family_tensors,
    run_awq,
    run_awq_on_family,
    save_model,
)
from tests.support.training import Killed


def outputs_of(module, family, padding=0):
    with torch.inference_mode():
        outputs = module(**family_tensors(family, padding))
    return outputs["embedding" if family is TEXTS else "logits"]


def relative_error(module, reference, family):
    expected = outputs_of(reference, family)
    error = outputs_of(module, family) - expected
    return float(error.square().sum() / expected.square().sum())


@pytest.mark.parametrize("model", MODELS)
def test_the_linear_groups_name_every_linear_layer(model):
    family, config = MODELS[model]
    blocks = family.capability(LinearGroups, config).blocks
    names = [block.full(name) for block in blocks for site in block.sites for name in site.linears]
    assert sorted(names) == sorted(find_linears(family.build(config)))


@pytest.mark.parametrize("preset", ["bed-student", "bed-teacher"])
def test_the_linear_groups_of_presets_name_every_linear_layer(preset):
    module = PHONE.build(PHONE.presets[preset])
    blocks = PHONE.capability(LinearGroups, PHONE.presets[preset]).blocks
    names = [block.full(name) for block in blocks for site in block.sites for name in site.linears]
    assert sorted(names) == sorted(find_linears(module))


@pytest.mark.parametrize("model", MODELS)
def test_folding_scales_does_not_change_the_outputs(model, tmp_path):
    family, config = MODELS[model]
    parent = save_model(tmp_path, family, config)
    module, folded = load_module(parent.model), load_module(parent.model)
    folds = 0
    for block in family.capability(LinearGroups, config).blocks:
        layer = folded.get_submodule(block.name)
        for site in block.sites:
            if (source := site.source) is None:
                continue
            width = layer.get_submodule(site.linears[0]).in_features
            scale = torch.rand(width // source.repeats) + 0.5
            if source.repeats > 1:
                scale = scale.view(-1, 1, source.block).expand(-1, source.repeats, -1).reshape(-1)
            fold_scale(layer, source, scale, torch.float32)
            for name in site.linears:
                layer.get_submodule(name).weight.data *= scale
            folds += 1
    expected = outputs_of(module, family)
    assert folds >= (1 if model == "texts" else 3)
    tolerance = 1e-5 * float(expected.abs().max())
    assert torch.allclose(outputs_of(folded, family), expected, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_every_family_is_packed_with_little_loss(model, tmp_path):
    family, config = MODELS[model]
    parent = save_model(tmp_path / "parent", family, config)
    out, output = run_awq_on_family(tmp_path, parent, family, bits=8)
    assert relative_error(load_module(out), load_module(parent.model), family) < 1e-3
    assert recognize(out).format.name == "packed"
    linears = find_linears(family.build(config))
    kept_float = {row["linear"] for row in output.summary["kept_float"]}
    rows = {
        ".".join(filter(None, (row["block"], row["linear"]))): row
        for row in output.summary["layers"]
    }
    assert rows.keys() | kept_float == linears.keys()
    assert all(linears[name].weight.numel() >= 1024 for name in rows)
    assert output.summary["packed_weights"] == sum(linears[name].weight.numel() for name in rows)
    assert all(row["error"] < 1e-3 and row["bits"] == 8 for row in rows.values())


@pytest.mark.parametrize("model", ["phone", "phone of transformers", "images", "texts"])
def test_calibrated_rounding_is_better_than_nearest(model, tmp_path):
    family, config = MODELS[model]
    parent = save_model(tmp_path / "parent", family, config)
    module, errors = load_module(parent.model), {}
    for name, fields in (("nearest", NEAREST), ("calibrated", {})):
        out, _ = run_awq_on_family(tmp_path / name, parent, family, bits=3, **fields)
        errors[name] = relative_error(load_module(out), module, family)
    assert errors["calibrated"] < 0.6 * errors["nearest"]


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, -1]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([None, "float16", "bfloat16"]),
)
@settings(deadline=None, max_examples=8)
def test_the_loaded_weights_are_the_rounded_ones_bit_for_bit(
    tmp_path_factory, bits, group_size, symmetric, dtype
):
    folder, written = tmp_path_factory.mktemp("packed"), {}
    parent = save_model(folder / "parent")

    def record(file, prefix, floats, packed, run_settings):
        written.update(
            {
                name: value.to(run_settings.float_dtype).float()
                for name, value in floats.items()
                if value.is_floating_point()
            }
        )
        written.update({f"{name}.weight": layer.dequantize() for name, layer in packed.items()})
        write_packed_shard(file, prefix, floats, packed, run_settings)

    write_packed_shard = whole_run.write_packed_shard
    fields = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "dtype": dtype}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_run, "write_packed_shard", record)
        out, _ = run_awq_on_family(folder, parent, **fields)
    loaded = load_module(out).state_dict()
    floats = {name for name, value in loaded.items() if value.is_floating_point()}
    assert floats == written.keys()
    assert all(loaded[name].dtype == torch.float32 for name in floats)
    assert all(torch.equal(loaded[name], written[name]) for name in floats)


def test_the_file_and_config_json_agree_on_the_packed_layers(tmp_path):
    parent = save_model(tmp_path / "parent")
    out, output = run_awq_on_family(tmp_path, parent)
    tree = json.loads((out / "config.json").read_text())
    stored = load_file(out / "model.safetensors")
    assert tree["family"] == "autoglm-phone"
    assert tree["quantization_config"]["format"] == "pack-quantized"
    kept_float = {row["linear"]: row["why"] for row in output.summary["kept_float"]}
    assert tree["quantization_config"]["ignore"] == sorted(kept_float)
    reason = kept_float["vision.blocks.1.squeeze.down"]
    assert "8 inputs " in reason
    assert "64 weights are too few to win anything" in reason
    before = load_file(parent.model / "model.safetensors")
    for name in kept_float:
        assert torch.equal(stored[f"{name}.weight"], before[f"{name}.weight"])
    assert stored["fusion.layers.0.gate_in.weight_packed"].shape == (32, 16)
    assert "fusion.layers.0.gate_in.weight" not in stored


def test_a_killed_run_starts_again_and_ends_in_the_same_bytes(tmp_path):
    parent = save_model(tmp_path / "parent")
    uninterrupted, _ = run_awq_on_family(tmp_path / "uninterrupted", parent)
    with pytest.raises(Killed):
        data = family_data(PHONE)
        run_awq(parent, tmp_path / "killed", COMPRESSED_TENSORS, text=data, killed_after=3)
    again, _ = run_awq_on_family(tmp_path / "killed", parent)
    for file in sorted(uninterrupted.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_float_layers_compensate_the_scales_of_the_packed_layers_beside_them(tmp_path):
    # Keys with 18 outputs and a feed-forward width of 72 do not fit the grid.
    config = PHONE.slim(SMALL_PHONE, ffn=72, key_heads=1, head_width=18)
    parent = save_model(tmp_path / "parent", PHONE, config)
    out, output = run_awq_on_family(tmp_path, parent, bits=8)
    kept_float = {row["linear"] for row in output.summary["kept_float"]}
    assert "text_encoder.layers.0.attention.key" in kept_float
    assert "text_encoder.layers.0.attention.query" not in kept_float
    assert any(
        row["scale_exponent"]
        for row in output.summary["layers"]
        if row["linear"] == "attention.query"
    )
    assert relative_error(load_module(out), load_module(parent.model), PHONE) < 1e-3


def test_the_content_of_padding_does_not_change_the_bytes(tmp_path):
    parent = save_model(tmp_path / "parent", TEXTS, BERT)
    zeros = family_samples(TEXTS)
    ids = np.where(zeros["attention_mask"], zeros["input_ids"], 77)
    files = []
    for name, samples in (("zeros", zeros), ("ids", {**zeros, "input_ids": ids})):
        data = ArrayDataset(samples, tuple(samples))
        out, _ = run_awq(parent, tmp_path / name, COMPRESSED_TENSORS, text=data)
        files.append(out / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("fields", [{"scaling": False}, {"error_compensation": 0.0}])
def test_the_amount_of_padding_does_not_change_the_model(fields, tmp_path):
    """Scales between near ties would follow the last bits of the compensated layers before."""
    parent, results = save_model(tmp_path / "parent"), []
    for padding in (0, 5):
        folder = tmp_path / str(padding)
        out, output = run_awq_on_family(folder, parent, padding=padding, **fields)
        exponents = [row["scale_exponent"] for row in output.summary["layers"]]
        results.append((load_file(out / "model.safetensors"), exponents))
    (short, exponents), (long, long_exponents) = results
    assert exponents == long_exponents
    packed = [name for name in short if name.endswith("weight_packed")]
    same = sum(int((short[name] == long[name]).sum()) for name in packed)
    total = sum(short[name].numel() for name in packed)
    assert same >= 0.98 * total, "sums of more terms round differently"
    expected = outputs_of(load_module(tmp_path / "0/out"), PHONE)
    padded = outputs_of(load_module(tmp_path / "5/out"), PHONE)
    assert torch.allclose(padded, expected, atol=0.05 * float(expected.abs().max()))


def test_layers_that_no_sample_reaches_are_rounded_too(tmp_path):
    samples = family_samples(PHONE)
    samples |= {"tokens": np.full((SAMPLES, 12), 5), "mel": np.zeros_like(samples["mel"])}
    parent = save_model(tmp_path / "parent")
    data = ArrayDataset(samples, tuple(samples))
    out, _ = run_awq(parent, tmp_path, COMPRESSED_TENSORS, text=data)
    weight, rounded = (
        load_module(folder).fusion.from_speech.weight.detach() for folder in (parent.model, out)
    )
    change = (weight - rounded).abs()
    assert 0 < float(change.max()) < 0.1 * float(weight.abs().max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "awq"}, "AutoAWQ's format holds transformers checkpoints"),
        ({"vision": {"bits": 8}}, "`vision`: for decoders whose layers run one at a time"),
        ({"group_size": 256}, "fusion.from_vision: 32 inputs "),
        ({"group_size": 256}, "`group_size` to one with which a layer fits: 128, 64, 32, 16, -1"),
    ],
)
def test_misfits_are_named_before_the_run(fields, message, tmp_path):
    with pytest.raises(RequirementError) as caught:
        run_awq_on_family(tmp_path, save_model(tmp_path / "parent"), **fields)
    assert message in str(caught.value)


def test_mixed_precision_keeps_the_average_and_beats_the_next_fewer_bits(tmp_path):
    parent = save_model(tmp_path / "parent", TEXTS, BERT)
    reference, errors = load_module(parent.model), {}
    for name, fields in (("fewer", {"bits": 3}), ("mixed", {"effective_bits": 4.9})):
        out, output = run_awq_on_family(
            tmp_path / name, parent, TEXTS, symmetric=True, group_size=16, **fields
        )
        errors[name] = relative_error(load_module(out), reference, TEXTS)
    assert 4 < output.summary["effective_bits"] <= 4.9
    assert len({row["bits"] for row in output.summary["layers"]}) > 1
    assert errors["mixed"] < errors["fewer"]


def test_fewer_bits_than_the_cheapest_grids_take_are_refused(tmp_path):
    parent = save_model(tmp_path / "parent", TEXTS, BERT)
    with pytest.raises(RequirementError, match=r"`effective_bits`: 2\.2 is less than the 3\.000"):
        run_awq_on_family(
            tmp_path, parent, TEXTS, symmetric=True, group_size=16, effective_bits=2.2
        )


def test_groups_that_a_family_does_not_state_are_discovered(tmp_path, monkeypatch):
    monkeypatch.setattr(AutoGLMPhone, "capabilities", lambda self, config: {})
    parent = save_model(tmp_path / "parent")
    reference, errors = load_module(parent.model), {}
    for name, fields in (("nearest", NEAREST), ("discovered", {})):
        out, output = run_awq_on_family(tmp_path / name, parent, bits=3, **fields)
        errors[name] = relative_error(load_module(out), reference, PHONE)
    assert errors["discovered"] < 0.7 * errors["nearest"]
    assert any(row["scale_exponent"] for row in output.summary["layers"])
    linears = {row["linear"] for row in output.summary["layers"]}
    assert linears >= {"fusion.from_vision", "fusion.cell_space"}


def test_a_packed_model_is_compared_and_measured_but_generates_nothing(tmp_path):
    parent = save_model(tmp_path / "parent")
    out, _ = run_awq_on_family(tmp_path, parent)
    comparison = compare_layers(
        open_layers("torch", parent.model, 1),
        open_layers("packed", out, 1),
        family_samples(PHONE),
    )
    added = {row.layer: row.added for row in comparison.layers}
    assert added["fusion.layers.0.attention.query"] > 0
    assert added["vision.stem"] == 0
    pairs = {pair.name: pair for pair in compare_tensors(recognize(parent.model), recognize(out))}
    assert 5 < pairs["fusion.cell_space.weight"].snr_db < 40
    assert pairs["vision.stem.weight"].equal
    with open_session("packed", out, threads=1) as session:
        logits = session.run(family_samples(PHONE))["logits"]
    expected = outputs_of(load_module(out), PHONE)
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-5)
    with pytest.raises(UsageError, match="no model that generates text"):
        format_named("packed").generation_limits(out)


def test_an_unknown_quantization_method_is_refused(tmp_path):
    out, _ = run_awq_on_family(tmp_path, save_model(tmp_path / "parent"))
    file = out / "config.json"
    file.write_text(file.read_text().replace("compressed-tensors", "gptq"))
    with pytest.raises(ModelError, match="quantized by 'gptq'; supported: awq, compressed-tensors"):
        load_module(out)


def test_missing_packed_tensors_are_named(tmp_path):
    out, _ = run_awq_on_family(tmp_path, save_model(tmp_path / "parent"))
    file = out / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"cell_space.weight_scale", b"cell_space.weight_stale"))
    with pytest.raises(CompressError, match=r"fusion\.cell_space has no weight_scale"):
        load_module(out)


class Shuffled(nn.Module):
    """Draws the order of its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[torch.randperm(len(x))]


def test_random_numbers_are_the_same_in_every_run_and_others_are_left_alone() -> None:
    inputs = {"x": torch.arange(50)}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (whole_run.run_reproducibly(Shuffled(), inputs, seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(1), expected)
