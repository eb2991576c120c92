"""Images in exported decoders: the vision tower, image embeddings in the prompt, and generation."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import Dataset, SourceContext
from compressor.engine.contract import PassOutput
from compressor.errors import DataError, ParityError, UsageError
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.graphs.decoder.interface import VISION_MODEL
from compressor.models.attention_patterns.record import (
    AttentionPattern,
    LocalHeads,
    write_attention_pattern,
)
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower, position_offsets
from passes.export_onnx.decoder.vision import SingleImageTower
from tests.support.decoders import export_decoder, pack_decoder, save_decoder
from tests.support.processors import message, write_conversations, write_picture, write_processor

SIZES = [(56, 56), (84, 28), (28, 84), (56, 28)]
FIELDS = {"parity": {"data": "text"}}  # the data set of that name has images here
GREEDY = SamplingOptions(max_tokens=8, temperature=0.0, top_p=1.0, seed=0)
TARGETS = pytest.mark.parametrize("target", ["onnxruntime", "portable"])
WAYS = ["windows", "with images", "token by token", "padded"]


@dataclass
class Exported:
    """A checkpoint with images, its graphs for both targets, and conversations about pictures."""

    folder: Path
    """Holds the pictures, and a folder per target."""
    parent: SimpleNamespace
    dataset: Dataset
    """Samples with one image, with two of different shapes (twice), and without any (twice)."""
    outputs: dict[str, PassOutput]
    notes: list[str]
    """Notes of the export for ONNX Runtime."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    parent = save_decoder(folder / "parent", "tiny-glm4v")
    write_processor(folder / "parent")
    for number, size in enumerate(SIZES):
        write_picture(folder / f"{number}.png", *size)
    pictures = [["0.png"], ["1.png", "2.png"], ["3.png", "0.png"], [], []]
    conversations = [
        [
            message("user", f"w{20 + number} w7 w{30 + number}", *images),
            message("assistant", f"w{40 + number} w9 w5"),
        ]
        for number, images in enumerate(pictures)
    ]
    write_conversations(folder / "conversations.jsonl", *conversations)
    config = ImageTextConfig(source="image-text", path="conversations.jsonl", processor="parent")
    dataset = ImageText().load(config, SourceContext(folder))
    outputs, notes = {}, {}
    for target in ("onnxruntime", "portable"):
        fields = {"parity": {"data": "text", "num_samples": 5}, "decoder": {"target": target}}
        outputs[target], notes[target] = export_decoder(parent, folder / target, fields, dataset)
    return Exported(folder, parent, dataset, outputs, notes["onnxruntime"])


@TARGETS
def test_graphs_compute_what_torch_does_with_images(exported, target):
    summary = exported.outputs[target].summary
    assert [way["way"] for way in summary["parity"]] == WAYS
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in summary["parity"])
    assert summary["vision"]["max_abs"] < 1e-5
    assert summary["vision"]["cosine"] > 0.99999


def test_an_8_bit_cache_is_calibrated_with_images(exported, tmp_path):
    fields = {
        "parity": {"data": "text", "num_samples": 5},
        "decoder": {"int8_kv_cache": {"data": "text"}},
    }
    output, _ = export_decoder(exported.parent, tmp_path / "out", fields, exported.dataset)
    ways = {way["way"]: way["kl"] for way in output.summary["parity"]}
    assert list(ways) == WAYS
    assert 0 < max(ways.values()) < 2e-3


def test_the_vision_tower_can_be_left_unsimplified(exported, tmp_path):
    fields = {**FIELDS, "simplify": False}
    _, notes = export_decoder(exported.parent, tmp_path / "out", fields, exported.dataset)
    assert notes == []
    assert [note.partition(":")[0] for note in exported.notes] == ["vision tower"]


def test_other_pixels_give_other_logits(exported):
    batch = exported.dataset.batch(np.array([1]))
    with open_session("onnx", exported.folder / "onnxruntime", threads=1) as session:
        logits = session.run(batch)["logits"]
        flipped = {**batch, "pixel_values": batch["pixel_values"][:, ::-1].copy()}
        assert np.abs(logits - session.run(flipped)["logits"]).max() > 1e-3


def test_a_padded_batch_with_images_gives_the_logits_of_torch(exported):
    batch = exported.dataset.batch(np.arange(5))
    with open_session("onnx", exported.folder / "onnxruntime", threads=1) as session:
        actual = session.run(batch)["logits"]
    with open_session("torch", exported.parent.model, threads=1) as session:
        expected = session.run(batch)["logits"]
    is_valid = batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(actual[is_valid], expected[is_valid], atol=1e-4)


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 10), (1, 12, 2), (1, 8, 6)])
def test_the_tower_takes_images_of_any_size(exported, grid):
    tower = load_module(exported.parent.model).model.visual
    pixels, grids = torch.randn(int(np.prod(grid)), 3 * 2 * 14 * 14), torch.tensor([grid])
    with torch.inference_mode():
        expected = tower(pixels, grid_thw=grids).pooler_output
        single = SingleImageTower(tower)(pixels, grids)
    torch.testing.assert_close(single, expected, atol=1e-5, rtol=1e-4)
    session = VisionTower(exported.folder / "onnxruntime", 1, "cpu")
    actual = session.encode_image(pixels.numpy(), np.array(grid))
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)


def test_the_tower_takes_one_image_at_a_time(exported):
    model = onnx.load(exported.folder / "onnxruntime" / VISION_MODEL)
    [grids] = [value for value in model.graph.input if value.name == "image_grid_thw"]
    assert [size.dim_value for size in grids.type.tensor_type.shape.dim] == [1, 3]


@pytest.mark.parametrize("number", range(5))
def test_positions_are_those_of_transformers(exported, number):
    batch = exported.dataset.batch(np.array([number]))
    grids = batch["image_grid_thw"][0]
    model = load_module(exported.parent.model).model
    expected, delta = model.get_rope_index(
        torch.from_numpy(batch["input_ids"]),
        torch.from_numpy(batch["mm_token_type_ids"]),
        torch.from_numpy(grids) if len(grids) else None,
    )
    offsets, next_offset = position_offsets(batch["mm_token_type_ids"][0], list(grids), 2)
    assert np.array_equal(offsets + np.arange(offsets.shape[1]), expected[:, 0].numpy())
    assert next_offset == int(delta)


def test_image_tokens_without_their_image_are_refused(exported):
    batch = exported.dataset.batch(np.array([0]))
    tower = VisionTower(exported.folder / "onnxruntime", 1, "cpu")
    with pytest.raises(DataError, match="image tokens do not match images"):
        tower.encode(
            batch["mm_token_type_ids"][:, :-6],
            batch["pixel_values"],
            batch["image_grid_thw"] * [1, 1, 2],
        )


def test_text_alone_needs_no_image_inputs(exported):
    ids = np.arange(10, 22)[None]
    decoder = OnnxDecoder(exported.folder / "onnxruntime", 1, capacity=16)
    actual = decoder.forward(ids, logits_to_keep=0)
    with open_session("torch", exported.parent.model, threads=1) as session:
        expected = session.run({"input_ids": ids})["logits"]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_packed_tower_keeps_its_integers(exported, tmp_path):
    packed = pack_decoder(
        exported.parent,
        tmp_path / "packed",
        format="compressed-tensors",
        vision={"bits": 8, "group_size": -1},
    )
    fields = {**FIELDS, "decoder": {"accuracy_level": 1}}
    output, _ = export_decoder(packed, tmp_path / "out", fields, exported.dataset)
    assert output.summary["vision"]["max_abs"] < 1e-5
    tower = onnx.load(tmp_path / "out" / VISION_MODEL)
    assert {value.name for value in tower.graph.input} == {"pixel_values", "image_grid_thw"}
    products = [node for node in tower.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == output.summary["vision"]["integer_layers"] > 0
    portable = {**FIELDS, "decoder": {"target": "portable"}}
    output, _ = export_decoder(packed, tmp_path / "portable", portable, exported.dataset)
    assert "integer_layers" not in output.summary["vision"]


def test_a_packed_head_is_carried_over(tmp_path):
    packed = pack_decoder(
        save_decoder(tmp_path / "parent", "tiny-llama", {"tie_word_embeddings": False}),
        tmp_path / "packed",
        format="compressed-tensors",
        symmetric=True,
        lm_head={"bits": 4, "group_size": 32, "symmetric": True},
    )
    # ONNX Runtime rounds activations where it fuses standard operators into MatMulNBits itself.
    limits = {"onnxruntime": ({"accuracy_level": 1}, 1e-9), "portable": ({}, 1e-3)}
    for target, (level, limit) in limits.items():
        fields = {**FIELDS, "decoder": {"target": target, **level}}
        output, _ = export_decoder(packed, tmp_path / target, fields)
        assert all(way["kl"] < limit for way in output.summary["parity"])
        graph = onnx.load(tmp_path / target / "model.onnx").graph
        [head] = [tensor for tensor in graph.initializer if tensor.name == "head.data"]
        assert head.data_type in {onnx.TensorProto.UINT8, onnx.TensorProto.INT4}


def test_prompts_with_images_are_prefilled_with_8_bit_weights(exported, tmp_path):
    packed = pack_decoder(exported.parent, tmp_path / "packed", format="compressed-tensors")
    export_decoder(packed, tmp_path / "out", FIELDS, exported.dataset)
    batch = exported.dataset.batch(np.array([1]))
    images = VisionTower(tmp_path / "out", 1, "cpu").encode_batch(batch)
    assert images is not None
    logits = []
    for fast in (False, True):
        decoder = OnnxDecoder(tmp_path / "out", 1, capacity=64, fast_prompts=fast)
        prompt = decoder.forward(batch["input_ids"], logits_to_keep=0, images=images).copy()
        logits.append([prompt, decoder.forward(np.array([[9]])).copy()])
    for exact, fast in zip(*logits, strict=True):
        assert 0 < np.abs(exact - fast).max() < 0.05 * np.abs(exact).max()


def test_a_wrong_tower_fails_the_comparison(exported, tmp_path, monkeypatch):
    broken = staticmethod(lambda attention, x, cos, sin: 0 * x)
    monkeypatch.setattr(SingleImageTower, "_attention", broken)
    with pytest.raises(ParityError, match=r"vision\.onnx"):
        export_decoder(exported.parent, tmp_path / "out", FIELDS, exported.dataset)


def answer(folder, text, images, *, raw=False):
    pieces = []
    prompt = Prompt(text, tuple(images), raw=raw)
    generate(model_at(folder), prompt, GREEDY, threads=1, on_text=pieces.append)
    return "".join(pieces)


def test_torch_and_both_graphs_generate_the_same_text_about_images(exported):
    pictures = [exported.folder / name for name in ("1.png", "2.png")]
    expected = answer(exported.parent.model, "w10 w11", pictures)
    assert expected
    another_picture = [exported.folder / "0.png"]
    assert expected != answer(exported.parent.model, "w10 w11", another_picture)
    for target in ("onnxruntime", "portable"):
        assert answer(exported.folder / target, "w10 w11", pictures) == expected


def test_images_that_cannot_be_used_are_errors(exported, tmp_path):
    folder, picture = exported.parent.model, exported.folder / "0.png"
    with pytest.raises(DataError, match=r"gone\.png"):
        answer(folder, "w1", [tmp_path / "gone.png"])
    with pytest.raises(UsageError, match="--raw"):
        answer(folder, "w1", [picture], raw=True)
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(DataError, match=r"no\.png"):
        answer(folder, "w1", [tmp_path / "no.png"])
    text_model = save_decoder(tmp_path / "llama", "tiny-llama")
    with pytest.raises(UsageError, match="takes no images"):
        answer(text_model.model, "w1", [picture])


def test_heads_with_a_window_see_images_by_their_place_in_the_sequence(exported, tmp_path):
    """Sinks and window count tokens, and not the positions of M-RoPE, which images share."""
    shutil.copytree(exported.parent.model, tmp_path / "parent")
    local = LocalHeads(heads=(1,), sinks=2, window=5)
    write_attention_pattern(AttentionPattern(layers=(None, local, local)), tmp_path / "parent")
    parent = SimpleNamespace(**{**vars(exported.parent), "model": tmp_path / "parent"})
    fields = {"parity": {"data": "text", "num_samples": 5}}
    output, _ = export_decoder(parent, tmp_path / "out", fields, exported.dataset)
    assert [way["way"] for way in output.summary["parity"]] == WAYS
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in output.summary["parity"])
    whole = exported.outputs["onnxruntime"].summary
    assert output.summary["kv_cache_bytes"] < whole["kv_cache_bytes"]
