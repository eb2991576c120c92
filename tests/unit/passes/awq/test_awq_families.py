"""The pass on models of the project's own families: in memory whole, of several parts, with padding of several kinds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from calibration.sources.arrays import ArrayDataset
from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import tensor_differences
from compressor.errors import CompressError, ModelError, RequirementError, UsageError
from compressor.generation.generate import Sampling, generate
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.runtimes.formats import open_layers, open_session, recognize
from passes.awq import whole
from passes.awq.fitting import linears_of
from passes.awq.positions import deciding
from passes.awq.site import fold
from tests.support.training import Killed
from tests.unit.passes.awq.test_awq import packed

PHONE, TEXTS, IMAGES = AutoGLMPhone(), SentenceEncoder(), ImageClassifier()
SMALL = PHONE.slim(
    PHONE.presets["tiny"],
    hidden=64,
    ffn=96,
    heads=4,
    key_heads=2,
    head_width=16,
    adapter=32,
    gate=32,
    shared=32,
    vision_width=32,
    speech_width=32,
)
TRANSFORMERS = PHONE.slim(
    SMALL,
    vision="vit-lite",
    vision_patch=4,
    vision_layers=2,
    vision_heads=2,
    vision_head_width=16,
    vision_ffn=64,
    speech="wav2vec-bridge",
    speech_heads=2,
    speech_head_width=16,
    speech_ffn=64,
)
VIT = IMAGES.slim(
    IMAGES.presets["small-vit"],
    image_size=16,
    vision_width=32,
    vision_layers=2,
    vision_head_width=8,
    vision_ffn=64,
)
BERT = TEXTS.slim(TEXTS.presets["tiny"], hidden_size=64, intermediate_size=96)
MODELS = {
    "phone": (PHONE, SMALL),
    "phone of transformers": (PHONE, TRANSFORMERS),
    "images": (IMAGES, VIT),
    "texts": (TEXTS, BERT),
    "texts with relu": (TEXTS, TEXTS.slim(BERT, hidden_act="relu")),
}
COUNT = 12


def samples_of(family, more=0):
    """Inputs of every kind; ``more`` positions of padding."""
    random = np.random.default_rng(0)
    if family is IMAGES:
        return {"image": random.integers(0, 256, (COUNT, 3, 16, 16), dtype=np.uint8)}
    present = np.arange(12 + more) < random.integers(4, 12, COUNT)[:, None]
    tokens = np.where(present, random.integers(1, 250, (COUNT, 12 + 40))[:, : 12 + more], 0)
    if family is TEXTS:
        return {"input_ids": tokens, "attention_mask": present.astype(np.int64)}
    spoken = np.arange(COUNT) % 2 == 1
    frames = np.arange(32 + 8 * more) < random.integers(12, 32, COUNT)[:, None]
    mel = random.normal(size=(COUNT, 80, 32 + 8 * 40))[:, :, : 32 + 8 * more] * frames[:, None]
    return {
        "screen": random.integers(0, 256, (COUNT, 3, 24, 24), dtype=np.uint8),
        "tokens": np.where(spoken[:, None], 0, tokens),
        "mel": (mel * spoken[:, None, None]).astype(np.float32),
    }


def set_of(family, more=0):
    samples = samples_of(family, more)
    return ArrayDataset(samples, tuple(samples))


def tensors(family, more=0):
    return {name: torch.from_numpy(array) for name, array in samples_of(family, more).items()}


def parent_in(folder, family=PHONE, config=SMALL):
    torch.manual_seed(1)
    module = family.build(config)
    for one in module.modules():
        if isinstance(one, nn.Linear):  # real models have channels that matter more than others
            one.weight.data *= 1 + 3 * torch.rand(1, one.in_features) ** 4
        elif isinstance(one, nn.LayerNorm | nn.RMSNorm):
            one.weight.data += 0.3 * torch.randn(one.weight.shape)
            if getattr(one, "bias", None) is not None:
                one.bias.data += 0.3 * torch.randn(one.bias.shape)
    family.save(module, config, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="torch"))


def fields(**more):
    calibration = {"data": "text", "num_samples": COUNT, "batch_size": 4}
    return {"format": "compressed-tensors", "group_size": 32, "calibration": calibration, **more}


NEAREST = {"refine": "none", "scaling": False, "drift": 0.0}


def packed_in(folder, parent, family=PHONE, more=0, **options):
    return packed(parent, folder, fields(**options), text=set_of(family, more))


def answers(module, family, more=0):
    with torch.inference_mode():
        found = module(**tensors(family, more))
    return found["embedding" if family is TEXTS else "logits"]


def error(module, other, family):
    wanted = answers(other, family)
    return float((answers(module, family) - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("model", MODELS)
def test_the_tables_name_every_linear_layer(model):
    family, config = MODELS[model]
    blocks = family.capability(LinearGroups, config).blocks
    named = [block.full(name) for block in blocks for site in block.sites for name in site.linears]
    assert sorted(named) == sorted(linears_of(family.build(config)))


@pytest.mark.parametrize("name", ["bed-student", "bed-teacher"])
def test_the_tables_hold_for_the_presets(name):
    module = PHONE.build(PHONE.presets[name])
    blocks = PHONE.capability(LinearGroups, PHONE.presets[name]).blocks
    named = [block.full(one) for block in blocks for site in block.sites for one in site.linears]
    assert sorted(named) == sorted(linears_of(module))


@pytest.mark.parametrize("model", MODELS)
def test_folding_leaves_the_answers_as_they_were(model, tmp_path):
    family, config = MODELS[model]
    parent = parent_in(tmp_path, family, config)
    module, folded = load_module(parent.model), load_module(parent.model)
    found = 0
    for block in family.capability(LinearGroups, config).blocks:
        layer = folded.get_submodule(block.name)
        for site in block.sites:
            if (source := site.source) is None:
                continue
            width = layer.get_submodule(site.linears[0]).in_features
            scale = torch.rand(width // source.repeats) + 0.5
            if source.repeats > 1:
                scale = scale.view(-1, 1, source.block).expand(-1, source.repeats, -1).reshape(-1)
            fold(layer, source, scale, torch.float32)
            for name in site.linears:
                layer.get_submodule(name).weight.data *= scale
            found += 1
    wanted = answers(module, family)
    assert found >= (1 if model == "texts" else 3)
    assert torch.allclose(answers(folded, family), wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("model", MODELS)
def test_every_family_is_packed_and_answers_nearly_as_before(model, tmp_path):
    family, config = MODELS[model]
    parent = parent_in(tmp_path / "parent", family, config)
    out, output = packed_in(tmp_path, parent, family, bits=8)
    assert error(load_module(out), load_module(parent.model), family) < 1e-3
    assert recognize(out).format.name == "packed"
    linears = {
        name: one
        for name, one in linears_of(family.build(config)).items()
        if one.weight.numel() >= 1024
    }
    kept = {row["linear"] for row in output.summary["kept_float"]}
    rows = {
        ".".join(filter(None, (row["block"], row["linear"]))): row
        for row in output.summary["layers"]
    }
    assert rows.keys() | kept == linears_of(family.build(config)).keys()
    assert output.summary["packed_weights"] == sum(linears[name].weight.numel() for name in rows)
    assert all(row["error"] < 1e-3 and row["bits"] == 8 for row in rows.values())


@pytest.mark.parametrize("model", ["phone", "phone of transformers", "images", "texts"])
def test_it_is_better_than_the_nearest(model, tmp_path):
    family, config = MODELS[model]
    parent = parent_in(tmp_path / "parent", family, config)
    module, found = load_module(parent.model), {}
    for name, more in (("nearest", NEAREST), ("refined", {})):
        out, _ = packed_in(tmp_path / name, parent, family, bits=3, **more)
        found[name] = error(load_module(out), module, family)
    assert found["refined"] < 0.6 * found["nearest"]


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, -1]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([None, "float16", "bfloat16"]),
)
@settings(deadline=None, max_examples=8)
def test_what_is_loaded_is_what_was_rounded_bit_for_bit(
    tmp_path_factory, bits, group_size, symmetric, dtype
):
    folder, written = tmp_path_factory.mktemp("packed"), {}
    parent = parent_in(folder / "parent")

    def write(file, prefix, others, other, layers, kind):
        written.update(
            {
                name: value.to(other).float()
                for name, value in others.items()
                if value.is_floating_point()
            }
        )
        written.update({f"{name}.weight": one.dequantized() for name, one in layers.items()})
        write_packed(file, prefix, others, other, layers, kind)

    write_packed = whole.write_packed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "write_packed", write)
        out, _ = packed_in(
            folder, parent, bits=bits, group_size=group_size, symmetric=symmetric, dtype=dtype
        )
    found = load_module(out).state_dict()
    floats = {name for name, value in found.items() if value.is_floating_point()}
    assert floats == written.keys()
    assert all(found[name].dtype == torch.float32 for name in floats)
    assert all(torch.equal(found[name], written[name]) for name in floats)


def test_the_file_and_config_json_say_what_is_packed(tmp_path):
    parent = parent_in(tmp_path / "parent")
    out, output = packed_in(tmp_path, parent)
    tree, stored = (
        json.loads((out / "config.json").read_text()),
        load_file(out / "model.safetensors"),
    )
    assert tree["family"] == "autoglm-phone"
    assert tree["quantization_config"]["format"] == "pack-quantized"
    kept = {row["linear"]: row["why"] for row in output.summary["kept_float"]}
    assert tree["quantization_config"]["ignore"] == sorted(kept)
    assert kept["vision.blocks.1.squeeze.down"] == (
        "8 inputs are no multiple of the group size 32; 64 weights are too few to win anything"
    )
    before = load_file(parent.model / "model.safetensors")
    assert all(torch.equal(stored[f"{name}.weight"], before[f"{name}.weight"]) for name in kept)
    assert stored["fusion.layers.0.gate_in.weight_packed"].shape == (32, 16)
    assert "fusion.layers.0.gate_in.weight" not in stored


def test_a_killed_run_begins_again_and_ends_in_the_same_bytes(tmp_path):
    parent = parent_in(tmp_path / "parent")
    whole_run, _ = packed_in(tmp_path / "whole", parent)
    with pytest.raises(Killed):
        packed(parent, tmp_path / "killed", fields(), text=set_of(PHONE), killed_after=3)
    again, _ = packed_in(tmp_path / "killed", parent)
    for file in sorted(whole_run.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_layers_that_do_not_fit_still_take_up_the_scales_of_those_that_do(tmp_path):
    config = PHONE.slim(
        SMALL, ffn=72, key_heads=1, head_width=18
    )  # keys of 18 outputs, 72 inner values
    parent = parent_in(tmp_path / "parent", PHONE, config)
    out, output = packed_in(tmp_path, parent, bits=8)
    kept = {row["linear"] for row in output.summary["kept_float"]}
    assert "text_encoder.layers.0.attention.key" in kept
    assert "text_encoder.layers.0.attention.query" not in kept
    assert any(
        row["scale_exponent"]
        for row in output.summary["layers"]
        if row["linear"] == "attention.query"
    )
    assert error(load_module(out), load_module(parent.model), PHONE) < 1e-3


def test_what_decides_is_what_is_no_padding(tmp_path):
    module, inputs = load_module(parent_in(tmp_path).model), tensors(PHONE, 3)
    key, adapter = "text_encoder.layers.0.attention.key", "fusion.adapter_in"
    found = deciding(module, [key, adapter, "fusion.from_speech"], ("logits",), inputs)
    with torch.inference_mode():
        _, heard = module.speech(inputs["mel"])
    written, spoken = (one.view(COUNT, -1) for one in found[key])
    assert torch.equal(written, inputs["tokens"] > 0)
    assert torch.equal(spoken, heard > 0)
    cells, sounds = found[adapter]
    assert bool(cells.all())
    assert torch.equal(sounds.view(COUNT, -1), heard > 0)
    assert torch.equal(found["fusion.from_speech"][0], sounds)


def test_layers_whose_results_are_changed_in_place_decide_too():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x, mask):
            inner = self.linear(x)
            inner.relu_()
            return {"logits": (self.head(inner) * mask[..., None]).sum(dim=1)}

    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = deciding(
        Masked(), ["linear", "head"], ("logits",), {"x": torch.ones(2, 3, 4), "mask": mask}
    )
    assert all(torch.equal(calls[0], mask.flatten() > 0) for calls in found.values())


def test_what_stands_in_the_padding_of_texts_gives_the_same_bytes(tmp_path):
    parent = parent_in(tmp_path / "parent", TEXTS, BERT)
    samples = samples_of(TEXTS)
    others = {**samples, "input_ids": np.where(samples["attention_mask"], samples["input_ids"], 77)}
    files = [
        packed(parent, tmp_path / name, fields(), text=ArrayDataset(some, tuple(some)))[0]
        / "model.safetensors"
        for name, some in (("zeros", samples), ("others", others))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_more_padding_of_words_and_sounds_decides_nothing(tmp_path):
    parent, found = parent_in(tmp_path / "parent"), []
    for more in (0, 5):
        out, output = packed_in(tmp_path / str(more), parent, more=more)
        found.append((load_file(out / "model.safetensors"), output.summary["layers"]))
    (few, rows), (many, others) = found
    assert [row["scale_exponent"] for row in rows] == [row["scale_exponent"] for row in others]
    packed_words = [name for name in few if name.endswith("weight_packed")]
    same = sum(int((few[name] == many[name]).sum()) for name in packed_words)
    assert same >= 0.98 * sum(few[name].numel() for name in packed_words), (
        "sums of more terms round otherwise"
    )
    answer = answers(load_module(tmp_path / "0/out"), PHONE)
    assert torch.allclose(
        answers(load_module(tmp_path / "5/out"), PHONE),
        answer,
        atol=0.05 * float(answer.abs().max()),
    )


def test_layers_that_no_sample_reaches_are_rounded_too(tmp_path):
    samples = samples_of(PHONE)
    written = {**samples, "tokens": np.full((COUNT, 12), 5), "mel": np.zeros_like(samples["mel"])}
    parent = parent_in(tmp_path / "parent")
    out, _ = packed(parent, tmp_path, fields(), text=ArrayDataset(written, tuple(written)))
    weight, found = (load_module(one).fusion.from_speech.weight for one in (parent.model, out))
    off = (weight - found).detach().abs()
    assert 0 < float(off.max()) < 0.1 * float(weight.detach().abs().max())


def without_table(monkeypatch):
    monkeypatch.setattr(AutoGLMPhone, "capabilities", lambda self, config: {})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"format": "awq"}, "AutoAWQ's format is that of language models of transformers"),
        ({"effective_bits": 4.25}, "`effective_bits`: for checkpoints of transformers"),
        ({"vision": {"bits": 8, "group_size": -1}}, "`vision`: for checkpoints of transformers"),
        (
            {"group_size": 256},
            "fusion.from_vision: 32 inputs are no multiple of the group size 256",
        ),
        ({"group_size": 256}, "group sizes that fit some: 128, 64, 32, 16, or -1"),
    ],
)
def test_what_cannot_be_packed_is_told(more, told, tmp_path):
    with pytest.raises(RequirementError) as caught:
        packed_in(tmp_path, parent_in(tmp_path / "parent"), **more)
    assert told in str(caught.value)


def test_a_family_without_a_table_is_rounded_to_the_nearest_or_not_at_all(tmp_path, monkeypatch):
    without_table(monkeypatch)
    parent = parent_in(tmp_path / "parent")
    with pytest.raises(
        RequirementError, match="does not state which of its linear layers read the same input"
    ) as caught:
        packed_in(tmp_path, parent)
    assert "`refine: none`, `scaling: false`, `drift: 0`" in str(caught.value)
    out, output = packed_in(tmp_path, parent, bits=8, **NEAREST)
    assert error(load_module(out), load_module(parent.model), PHONE) < 1e-3
    assert {row["linear"] for row in output.summary["layers"]} >= {
        "fusion.from_vision",
        "fusion.cell_space",
    }


def test_a_packed_model_is_looked_into_and_does_not_talk(tmp_path):
    parent = parent_in(tmp_path / "parent")
    out, _ = packed_in(tmp_path, parent)
    found = compare_layers(
        open_layers("torch", parent.model, 1), open_layers("packed", out, 1), samples_of(PHONE)
    )
    added = {one.layer: one.added for one in found.layers}
    assert added["fusion.layers.0.attention.query"] > 0
    assert added["vision.stem"] == 0
    pairs = {one.name: one for one in tensor_differences(("torch", parent.model), ("packed", out))}
    assert 5 < pairs["fusion.cell_space.weight"].snr_db < 40
    assert pairs["vision.stem.weight"].equal
    with open_session("packed", out, threads=1) as session:
        answer = session.run(samples_of(PHONE))["logits"]
    assert torch.allclose(torch.from_numpy(answer), answers(load_module(out), PHONE), atol=1e-5)
    with pytest.raises(UsageError, match="no model that generates text"):
        generate("packed", out, "open it", Sampling(4, 0.0, 1.0, 0), threads=1, raw=True, said=str)


def test_weights_that_others_have_quantized_in_other_ways_are_refused(tmp_path):
    out, _ = packed_in(tmp_path, parent_in(tmp_path / "parent"))
    file = out / "config.json"
    file.write_text(file.read_text().replace("compressed-tensors", "gptq"))
    with pytest.raises(
        ModelError, match="quantized by 'gptq'; awq, compressed-tensors are read here"
    ):
        load_module(out)


def test_weights_that_are_missing_are_told(tmp_path):
    out, _ = packed_in(tmp_path, parent_in(tmp_path / "parent"))
    file = out / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"cell_space.weight_scale", b"cell_space.weight_stale"))
    with pytest.raises(CompressError, match=r"fusion\.cell_space has no weight_scale"):
        load_module(out)
