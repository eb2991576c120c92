"""Calibration with images: what the vision tower says enters the decoder, and padding does not count."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from calibration.sources.arrays import ArrayDataset
from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import Dataset, SourceContext
from compressor.errors import RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from passes.awq import outside
from passes.awq.step import AwqConfig
from passes.common.accuracy import tensors_from_batch
from tests.support.processors import (
    message,
    write_conversations,
    write_picture,
    write_processor,
)
from tests.unit.passes.awq.test_awq import CT, packed, parent_in

TREE = Transformers.presets["tiny-glm4v"].tree


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bed")
    parent = parent_in(folder / "parent", "tiny-glm4v")
    write_processor(folder / "parent")
    sizes = [(56, 56), (84, 28), (28, 84), (56, 28)]
    talks = []
    for number in range(8):
        write_picture(folder / f"{number}.png", *sizes[number % 4])
        words = [f"w{10 + 7 * number + place}" for place in range(3 + number)]
        talks.append(
            [
                message("user", " ".join(words), f"{number}.png"),
                message("assistant", f"w{100 + number}"),
            ]
        )
    write_conversations(folder / "talks.jsonl", *talks)
    config = ImageTextConfig(source="image-text", path="talks.jsonl", processor="parent")
    return parent, ImageText().load(config, SourceContext(folder))


def test_what_enters_the_decoder_is_what_the_whole_model_gives_it(bed):
    parent, dataset = bed
    batch = dataset.batch(np.arange(4))
    inputs = {
        name: tensor
        for name, tensor in tensors_from_batch(batch, torch.device("cpu")).items()
        if name != "label"
    }
    checkpoint = StreamedCheckpoint(parent.model, TREE)
    [(hidden, arguments)] = checkpoint.entering(lambda: iter([inputs]))
    module = load_module(parent.model)
    seen = []
    module.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True
    )
    with torch.inference_mode():
        module(**inputs)
    torch.testing.assert_close(hidden, seen[0][0])
    for ours, theirs in zip(
        arguments[0][1]["position_embeddings"], seen[0][1]["position_embeddings"], strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert all(one.is_meta for one in checkpoint.module.parameters())


class OtherPadding(Dataset):
    """The same samples; where there is padding, another token."""

    def __init__(self, dataset):
        self.dataset, self.input_names, self.label_name = (
            dataset,
            dataset.input_names,
            dataset.label_name,
        )

    def __len__(self):
        return len(self.dataset)

    def batch(self, indices, epoch=0):
        batch = self.dataset.batch(indices)
        return {**batch, "input_ids": np.where(batch["attention_mask"], batch["input_ids"], 77)}


@pytest.mark.parametrize("more", [{}, {"effective_bits": 5}])
def test_padding_does_not_decide(more, bed, tmp_path):
    parent, dataset = bed
    found = {}
    for name, images in (("zeros", dataset), ("others", OtherPadding(dataset))):
        fields = {
            **CT,
            **more,
            "calibration": {"data": "images", "num_samples": 8, "batch_size": 4},
        }
        out, _ = packed(parent, tmp_path / name, fields, images=images)
        found[name] = {file.name: file.read_bytes() for file in out.glob("*.safetensors")}
    assert found["zeros"] == found["others"]


def test_images_calibrate_better_than_text_where_images_are_asked_about(bed, tmp_path):
    parent, dataset = bed
    whole = load_module(parent.model).float()
    tokens = np.random.default_rng(3).integers(3, 490, (8, 16))
    sets = {"images": dataset, "words": ArrayDataset({"input_ids": tokens}, ("input_ids",))}
    batch = dataset.batch(np.arange(8))
    inputs = {
        name: tensor
        for name, tensor in tensors_from_batch(batch, torch.device("cpu")).items()
        if name != "label"
    }
    counted = inputs["attention_mask"].bool()
    found = {}
    for name in sets:
        fields = {**CT, "bits": 3, "calibration": {"data": name, "num_samples": 8, "batch_size": 4}}
        out, output = packed(parent, tmp_path / name, fields, **sets)
        assert output.summary["calibrated_on"] == (
            ["text", "image"] if name == "images" else ["text"]
        )
        with torch.inference_mode():
            ours, theirs = (
                one(**inputs)["logits"].log_softmax(-1)[counted]
                for one in (load_module(out), whole)
            )
        found[name] = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert found["images"] < 0.8 * found["words"]


def test_a_vision_tower_gets_its_own_bits(bed, tmp_path):
    parent, dataset = bed
    # With zero-points, transformers 5.23 takes their shape for that of the unpacked ones: see test_packed_formats.
    fields = {**CT, "symmetric": True, "vision": {"bits": 8, "group_size": -1, "symmetric": True}}
    fields["calibration"] = {"data": "images", "num_samples": 8, "batch_size": 4}
    out, output = packed(parent, tmp_path, fields, images=dataset)
    names = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    inside = "model.visual."
    stored = {
        name.removesuffix(".weight_packed") for name in names if name.endswith(".weight_packed")
    }
    linears = [
        one
        for name, one in load_module(parent.model).named_modules()
        if name.startswith(inside) and isinstance(one, nn.Linear)
    ]
    assert (
        output.summary["vision_layers"]
        == len(linears)
        == sum(name.startswith(inside) for name in stored)
    )
    whole, ours = load_module(parent.model).state_dict(), load_module(out).state_dict()
    for name in stored:
        if name.startswith(inside):
            weight, found = whole[f"{name}.weight"].float(), ours[f"{name}.weight"]
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            assert bool(((found - weight).abs() <= 0.6 * step).all())
    read = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32
    )  # as others read it
    inputs = tensors_from_batch(dataset.batch(np.arange(2)), torch.device("cpu"))
    inputs.pop("label")
    grids = inputs["image_grid_thw"].flatten(0, 1)
    patches = [
        one[: int(count)] for one, count in zip(inputs["pixel_values"], grids.prod(-1), strict=True)
    ]
    with torch.inference_mode():
        theirs = read(**{**inputs, "pixel_values": torch.cat(patches), "image_grid_thw": grids})[
            "logits"
        ]
        answer = load_module(out)(**inputs)["logits"]
    counted = inputs["attention_mask"].bool()
    torch.testing.assert_close(theirs[counted], answer[counted], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("preset", "fields", "told"),
    [
        ("tiny-llama", {**CT, "vision": {"group_size": -1}}, "has no vision tower"),
        ("tiny-glm4v", {**CT, "head": {"group_size": 20}}, "the head cannot be packed so"),
        ("tiny-glm4v", {**CT, "vision": {"group_size": 20}}, "no multiple of the group size 20"),
    ],
)
def test_a_tower_that_cannot_be_packed_is_refused_before_anything_is_done(
    preset, fields, told, tmp_path
):
    parent = parent_in(tmp_path / "parent", preset)
    with pytest.raises(RequirementError, match=told):
        packed(parent, tmp_path, fields)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_of_its_own_gets_its_own_bits(bits, tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "_ROWS", 100)  # 512 words: several stretches, and a short one
    parent = parent_in(tmp_path / "parent", "tiny-glm4v")
    grid = {"bits": bits, "group_size": 32, "symmetric": True}
    out, _ = packed(parent, tmp_path, {**CT, "symmetric": True, "head": grid})
    names = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert "lm_head.weight" not in names
    assert "lm_head.weight_packed" in names
    before, after = (
        load_module(folder).lm_head.weight.detach().float() for folder in (parent.model, out)
    )
    steps = before.view(512, -1, 32).abs().amax(dim=2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    assert float((before - after).abs().mean()) < 0.3 * float(steps.mean()), (
        "a quarter of a step, about"
    )
    theirs = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32
    ).eval()  # as others read it
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        wanted = load_module(out)(input_ids=ids)["logits"]
        torch.testing.assert_close(theirs(input_ids=ids).logits, wanted, atol=2e-3, rtol=1e-3)


def test_a_head_that_is_the_embeddings_table_stays(tmp_path):
    parent = parent_in(tmp_path / "parent", "tiny-llama")
    with pytest.raises(RequirementError, match="the head is the embedding's table"):
        packed(parent, tmp_path, {**CT, "head": {"bits": 8, "group_size": -1}})


def test_a_tower_in_bits_needs_a_format_that_holds_them():
    with pytest.raises(ValueError, match="vision contradict"):
        AwqConfig.model_validate({"vision": {"bits": 4}})
