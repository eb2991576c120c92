"""Vision-language checkpoints: calibration with images, and grids for vision tower and head."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from calibration.sources.arrays import ArrayDataset
from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import Dataset, SourceContext
from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from compressor.models.families.transformers.generic.decoder_parts import decoder_parts
from compressor.models.families.transformers.layer_recording import NotStreamableError
from compressor.models.families.transformers.processor import Processor
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from passes.awq import nearest_layers
from passes.awq.config import AwqConfig
from passes.awq.step import Awq
from passes.common.device import tensors_from_batch
from tests.support.awq import (
    CHECKPOINTS,
    COMPRESSED_TENSORS,
    NEAREST,
    artifact,
    pass_context,
    run_awq,
    save_checkpoint,
)
from tests.support.processors import (
    message,
    write_conversations,
    write_picture,
    write_processor,
)
from tests.support.training import Killed
from tests.support.vision_language import write_vlm

TREE = CHECKPOINTS.presets["tiny-glm4v"].tree
SYMMETRIC = {**COMPRESSED_TENSORS, "symmetric": True}
"""Fields for checkpoints that transformers loads. Version 5.23 mistakes the packed shape of
zero-points for the unpacked one: see test_packed_formats."""


def calibrate_on(name):
    return {"calibration": {"data": name, "num_samples": 8, "batch_size": 4}}


@pytest.fixture(scope="module")
def image_text(tmp_path_factory):
    """Return a checkpoint's artifact, and eight conversations about images."""
    folder = tmp_path_factory.mktemp("image-text")
    parent = save_checkpoint(folder / "parent", "tiny-glm4v")
    write_processor(folder / "parent")
    sizes = [(56, 56), (84, 28), (28, 84), (56, 28)]
    conversations = []
    for number in range(8):
        write_picture(folder / f"{number}.png", *sizes[number % 4])
        words = [f"w{10 + 7 * number + index}" for index in range(3 + number)]
        conversations.append(
            [
                message("user", " ".join(words), f"{number}.png"),
                message("assistant", f"w{100 + number}"),
            ]
        )
    write_conversations(folder / "talks.jsonl", *conversations)
    config = ImageTextConfig(source="image-text", path="talks.jsonl", processor="parent")
    return parent, ImageText().load(config, SourceContext(folder))


def model_inputs(dataset, count):
    batch = dataset.batch(np.arange(count))
    tensors = tensors_from_batch(batch, torch.device("cpu"))
    return {name: tensor for name, tensor in tensors.items() if name != "label"}


def test_the_streamed_decoder_gets_the_inputs_that_the_whole_model_computes(image_text):
    parent, dataset = image_text
    inputs = model_inputs(dataset, 4)
    checkpoint = StreamedCheckpoint(parent.model, TREE)
    [(hidden, arguments)] = checkpoint.first_layer_inputs(lambda: iter([inputs]))
    module = load_module(parent.model)
    calls = []
    module.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True
    )
    with torch.inference_mode():
        module(**inputs)
    expected_hidden, expected_arguments = calls[0]
    torch.testing.assert_close(hidden, expected_hidden)
    for embedding, expected in zip(
        arguments[0].kwargs["position_embeddings"],
        expected_arguments["position_embeddings"],
        strict=True,
    ):
        torch.testing.assert_close(embedding, expected)
    assert all(parameter.is_meta for parameter in checkpoint.module.parameters())


@pytest.mark.parametrize("model_type", ["idefics3", "llava_onevision", "qwen3_vl_moe"])
def test_classes_that_read_more_than_their_parts_are_streamed(model_type, tmp_path):
    # The device of the class, a vector between images, shapes of fused experts.
    write_vlm(tmp_path, model_type)
    write_picture(tmp_path / "picture.png", 56, 28)
    encoding = Processor(tmp_path).encode([message("user", "w7", str(tmp_path / "picture.png"))])
    arrays = {"input_ids": encoding.input_ids, **encoding.arrays}
    inputs = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
    module, expected = load_module(tmp_path).float(), []

    def record(_, args, kwargs):
        expected.append(args[0] if args else kwargs["hidden_states"])
        raise Killed

    layers = module.get_submodule(decoder_parts(module).layers)
    layers[0].register_forward_pre_hook(record, with_kwargs=True)
    with pytest.raises(Killed), torch.inference_mode():
        module(**inputs)
    torch.testing.assert_close(decoder_inputs(tmp_path, inputs)[0], expected[0])


class OtherPadding(Dataset):
    """The same samples with another token at padding."""

    def __init__(self, dataset):
        self.dataset, self.input_names = dataset, dataset.input_names
        self.label_name = dataset.label_name

    def __len__(self):
        return len(self.dataset)

    def batch(self, indices, epoch=0):
        batch = self.dataset.batch(indices)
        return {**batch, "input_ids": np.where(batch["attention_mask"], batch["input_ids"], 77)}


@pytest.mark.parametrize("fields", [{}, {"effective_bits": 5}])
def test_the_content_of_padding_does_not_change_the_bytes(fields, image_text, tmp_path):
    parent, dataset = image_text
    fields = {**COMPRESSED_TENSORS, **fields, **calibrate_on("images")}
    contents = []
    for name, images in (("zeros", dataset), ("tokens", OtherPadding(dataset))):
        out, _ = run_awq(parent, tmp_path / name, fields, images=images)
        contents.append({file.name: file.read_bytes() for file in out.glob("*.safetensors")})
    assert contents[0] == contents[1]


def test_calibration_with_images_is_better_than_with_text_for_questions_about_images(
    image_text, tmp_path
):
    parent, dataset = image_text
    module = load_module(parent.model).float()
    tokens = np.random.default_rng(3).integers(3, 490, (8, 16))
    data_sets = {"images": dataset, "words": ArrayDataset({"input_ids": tokens}, ("input_ids",))}
    inputs = model_inputs(dataset, 8)
    valid = inputs["attention_mask"].bool()
    divergences = {}
    for name in data_sets:
        fields = {**COMPRESSED_TENSORS, "bits": 3, **calibrate_on(name)}
        out, output = run_awq(parent, tmp_path / name, fields, **data_sets)
        kinds = ["text", "image"] if name == "images" else ["text"]
        assert output.summary["calibrated_on"] == kinds
        with torch.inference_mode():
            log_q, log_p = (
                model(**inputs)["logits"].log_softmax(-1)[valid]
                for model in (load_module(out), module)
            )
        divergences[name] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert divergences["images"] < 0.8 * divergences["words"]


def test_the_vision_tower_is_packed_on_its_own_grid(image_text, tmp_path):
    parent, dataset = image_text
    fields = {**SYMMETRIC, "vision": {"bits": 8, "group_size": -1, "symmetric": True}}
    out, output = run_awq(parent, tmp_path, {**fields, **calibrate_on("images")}, images=dataset)
    names = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    prefix = "model.visual."
    packed = {
        name.removesuffix(".weight_packed")
        for name in names
        if name.startswith(prefix) and name.endswith(".weight_packed")
    }
    linears = [
        layer
        for name, layer in load_module(parent.model).named_modules()
        if name.startswith(prefix) and isinstance(layer, nn.Linear)
    ]
    assert output.summary["vision_layers"] == len(linears) == len(packed)
    rows = output.summary["vision"]
    assert {f"{row['block']}.{row['linear']}" for row in rows} == packed
    assert all(row["error"] < row["nearest_error"] for row in rows)
    by_transformers = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    inputs = model_inputs(dataset, 2)
    image_grids = inputs["image_grid_thw"].flatten(0, 1)
    patches = [
        values[: int(count)]
        for values, count in zip(inputs["pixel_values"], image_grids.prod(-1), strict=True)
    ]
    unpadded = {**inputs, "pixel_values": torch.cat(patches), "image_grid_thw": image_grids}
    with torch.inference_mode():
        expected = by_transformers(**unpadded)["logits"]
        logits = load_module(out)(**inputs)["logits"]
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(expected[valid], logits[valid], atol=2e-3, rtol=1e-3)


@pytest.fixture(scope="module", params=["qwen3_vl", "llava_next"])
def conversations(request, tmp_path_factory):
    """Return a checkpoint's artifact, and conversations to calibrate on and to measure with.

    Images have different numbers of patches, and of tiles; the first class adds features behind
    decoder layers.
    """
    folder = tmp_path_factory.mktemp(request.param)
    write_vlm(folder / "parent", request.param)
    sets = []
    for name, seed in (("calibration", 0), ("others", 1)):
        random = np.random.default_rng(seed)
        talks = []
        for number in range(12):
            height, width = random.integers(60, 130, 2)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
            talks.append([message("user", "w9", f"{name}-{number}.png"), message("user", "w8")])
        talks.append([message("user", "w10 w11"), message("assistant", "w12")])
        write_conversations(folder / f"{name}.jsonl", *talks)
        config = ImageTextConfig(source="image-text", path=f"{name}.jsonl", processor="parent")
        sets.append(ImageText().load(config, SourceContext(folder)))
    return artifact(folder / "parent"), *sets


TOWER = {
    **SYMMETRIC,
    "group_size": 16,
    "vision": {"bits": 3, "group_size": 16, "symmetric": True},
    "calibration": {"data": "images", "num_samples": 13, "batch_size": 4},
}


def decoder_inputs(folder, inputs):
    """Return what enters the first decoder layer of a checkpoint, and what is added behind it."""
    tree = json.loads((folder / "config.json").read_text())
    [(hidden, arguments)] = StreamedCheckpoint(folder, tree).first_layer_inputs(
        lambda: iter([inputs])
    )
    return [hidden, *(call.added for call in arguments if call.added is not None)]


def test_a_searched_tower_is_closer_to_the_float_tower_than_one_rounded_to_nearest(
    conversations, tmp_path
):
    parent, calibration, others = conversations
    inputs = model_inputs(others, 13)
    expected = decoder_inputs(parent.model, inputs)
    errors = []
    for name, fields in (("nearest", NEAREST), ("searched", {})):
        out, output = run_awq(parent, tmp_path / name, {**TOWER, **fields}, images=calibration)
        actual = decoder_inputs(out, inputs)
        errors.append([float((a - e).norm()) for a, e in zip(actual, expected, strict=True)])
    assert all(searched < 0.95 * nearest for nearest, searched in zip(*errors, strict=True))
    assert len(output.summary["vision"]) == output.summary["vision_layers"]


@pytest.mark.parametrize("conversations", ["llava_next"], indirect=True)
def test_a_run_killed_in_or_behind_the_tower_ends_with_the_same_bytes(conversations, tmp_path):
    parent, calibration, _ = conversations
    expected, _ = run_awq(parent, tmp_path / "whole", TOWER, images=calibration)
    context = pass_context(tmp_path / "killed", images=calibration)
    config, out = AwqConfig.model_validate(TOWER), tmp_path / "killed/out"
    for killed_in in ("vision", "layers"):

        def kill(activity, done, *_, killed_in=killed_in):
            if (activity, done) == (killed_in, 1):
                raise Killed

        with pytest.raises(Killed):
            Awq().run(config, parent, out, replace(context, progress=kill))
    Awq().run(config, parent, out, context)
    assert out_bytes(out) == out_bytes(expected)


def out_bytes(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("packs_more", [False, True])
@pytest.mark.parametrize("conversations", ["llava_next"], indirect=True)
def test_tower_and_head_of_a_decoder_that_is_loaded_whole_have_the_grids_of_their_fields(
    packs_more, conversations, tmp_path, monkeypatch
):
    parent, calibration, others = conversations

    def refuse(*_):
        raise NotStreamableError("its layers share a state")

    monkeypatch.setattr(StreamedCheckpoint, "first_layer_inputs", refuse)
    grid = {"bits": 8, "group_size": -1, "symmetric": True}
    fields = {"vision": grid, "lm_head": grid} if packs_more else {"vision": None}
    out, _ = run_awq(parent, tmp_path, {**TOWER, **NEAREST, **fields}, images=calibration)
    written = json.loads((out / "config.json").read_text())["quantization_config"]
    bits = [group["weights"]["num_bits"] for group in written["config_groups"].values()]
    assert sorted(bits) == ([4, 8] if packs_more else [4])
    names = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    packed = [name for name in names if name.endswith(".weight_packed")]
    assert any("lm_head" in name for name in packed) is packs_more
    assert any("vision_tower" in name for name in packed) is packs_more
    assert any("language_model" in name for name in packed)
    inputs = model_inputs(others, 4)
    with torch.inference_mode():
        expected, logits = (load_module(f).float()(**inputs)["logits"] for f in (parent.model, out))
    assert torch.cosine_similarity(expected, logits, dim=-1).mean() > 0.9


@pytest.mark.parametrize(
    ("preset", "fields", "messages"),
    [
        ("tiny-llama", {"vision": {"group_size": -1}}, ["has no vision tower"]),
        ("tiny-llama", {"head": {"group_size": -1}}, ["the head is tied to the embedding"]),
        (
            "tiny-glm4v",
            {"lm_head": {"group_size": 20}, "vision": {"group_size": 20}},
            ["lm_head: 128 inputs", "model.visual.blocks.0.attn.qkv: ", "lm_head.group_size"],
        ),
    ],
)
def test_a_tower_or_head_that_does_not_fit_is_refused_before_the_run(
    preset, fields, messages, tmp_path
):
    parent = save_checkpoint(tmp_path / "parent", preset)
    with pytest.raises(RequirementError) as caught:
        run_awq(parent, tmp_path, {**COMPRESSED_TENSORS, **fields})
    for expected in messages:
        assert expected in str(caught.value)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_untied_head_is_packed_on_its_own_grid(bits, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest_layers, "_HEAD_ROWS", 100)  # 512 rows: the last chunk is shorter
    parent = save_checkpoint(tmp_path / "parent", "tiny-glm4v")
    grid = {"bits": bits, "group_size": 32, "symmetric": True}
    out, _ = run_awq(parent, tmp_path, {**SYMMETRIC, "lm_head": grid})
    names = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert "lm_head.weight" not in names
    assert "lm_head.weight_packed" in names
    written = json.loads((out / "config.json").read_text())["quantization_config"]
    config = AwqConfig.model_validate({**SYMMETRIC, "lm_head": grid})
    planned = Awq().estimate(config, facts_of(parent.model), PlanContext({})).model
    packing = (planned.config or {})["quantization_config"]
    assert sorted(packing.pop("ignore")) == sorted(written.pop("ignore"))
    assert packing == written
    assert planned.integers == ({"int4"} if bits == 4 else {"int4", "int8"})
    before, after = (
        load_module(folder).lm_head.weight.detach().float() for folder in (parent.model, out)
    )
    steps = before.view(512, -1, 32).abs().amax(dim=2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    error = float((before - after).abs().mean())
    assert error < 0.3 * float(steps.mean()), "about a quarter of a step"
    by_transformers = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        expected = load_module(out)(input_ids=ids)["logits"]
        logits = by_transformers(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-3)


def test_a_table_that_takes_shares_of_all_rows_is_read_whole(tmp_path):
    """The table of Ovis 2 for parts of images gets probabilities in place of indices."""
    write_vlm(tmp_path, "ovis2")
    config = json.loads((tmp_path / "config.json").read_text())
    ids = torch.tensor([[4, *[config["image_token_id"]] * 4, 5, 6]])
    images = torch.rand((1, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}
    module = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    entered = []
    module.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args: entered.append(args[0]) or None
    )
    with torch.no_grad():
        module(**inputs)
    of_samples = {**inputs, "pixel_values": images[None]}
    torch.testing.assert_close(decoder_inputs(tmp_path, of_samples)[0], entered[0])
