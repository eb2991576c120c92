"""Images through graphs: the tower with any grid, its words in the decoder, and text that goes on behind them."""

import numpy as np
import onnx
import pytest
import torch

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, ParityError, UsageError
from compressor.generation.generate import Sampling, generate
from compressor.graphs.decoder.interface import VISION_MODEL
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower, position_offsets
from passes.export_onnx.decoder.tower import OneImage
from tests.support.processors import (
    message,
    write_conversations,
    write_picture,
    write_processor,
)
from tests.unit.passes.export_onnx.test_decoder import awq, exported, parent_in

SIZES = [(56, 56), (84, 28), (28, 84), (56, 28)]
IMAGES = {"parity": {"data": "text"}}  # the set of that name holds images here
GREEDY = Sampling(max_tokens=8, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A checkpoint, conversations with no image, with one, with two of different shapes; and its graphs."""
    folder = tmp_path_factory.mktemp("pictures")
    parent = parent_in(folder / "parent", "tiny-glm4v")
    write_processor(folder / "parent")
    for number, size in enumerate(SIZES):
        write_picture(folder / f"{number}.png", *size)
    shown = [["0.png"], ["1.png", "2.png"], ["3.png", "0.png"], [], []]
    talks = [
        [
            message("user", f"w{20 + one} w7 w{30 + one}", *images),
            message("assistant", f"w{40 + one} w9 w5"),
        ]
        for one, images in enumerate(shown)
    ]
    write_conversations(folder / "talks.jsonl", *talks)
    config = ImageTextConfig(source="image-text", path="talks.jsonl", processor="parent")
    dataset = ImageText().load(config, SourceContext(folder))
    outputs = {}
    for target in ("onnxruntime", "portable"):
        fields = {**IMAGES, "decoder": {"target": target}}
        outputs[target] = exported(
            parent,
            folder / target,
            {**fields, "parity": {"data": "text", "num_samples": 5}},
            dataset,
        )[0]
    return folder, parent, dataset, outputs


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_graphs_answer_about_images_as_torch_does(bed, target):
    output = bed[3][target]
    assert [one["way"] for one in output.summary["parity"]] == [
        "windows",
        "with images",
        "token by token",
        "padded",
    ]
    assert all(one["max_abs"] < 1e-4 and one["same"] == 1 for one in output.summary["parity"])
    assert output.summary["vision"]["max_abs"] < 1e-5
    assert output.summary["vision"]["cosine"] > 0.99999


def test_images_and_keys_and_values_in_8_bits(bed, tmp_path):
    """The windows that give the scales have images in them too."""
    fields = {
        "parity": {"data": "text", "num_samples": 5},
        "decoder": {"int8_kv_cache": {"data": "text"}},
    }
    output, _ = exported(bed[1], tmp_path / "out", fields, bed[2])
    ways = {one["way"]: one["kl"] for one in output.summary["parity"]}
    assert set(ways) == {"windows", "with images", "token by token", "padded"}
    assert 0 < max(ways.values()) < 2e-3


def test_images_matter(bed):
    folder, _, dataset, _ = bed
    batch = dataset.batch(np.array([1]))
    with open_session("onnx", folder / "onnxruntime", threads=1) as session:
        said = session.run(batch)["logits"]
        other = session.run({**batch, "pixel_values": batch["pixel_values"][:, ::-1].copy()})[
            "logits"
        ]
    assert np.abs(said - other).max() > 1e-3


def test_a_padded_batch_of_mixed_images_is_measured_as_torch_measures_it(bed):
    folder, parent, dataset, _ = bed
    batch = dataset.batch(np.arange(5))
    with open_session("onnx", folder / "onnxruntime", threads=1) as session:
        got = session.run(batch)["logits"]
    with open_session("torch", parent.model, threads=1) as session:
        wanted = session.run(batch)["logits"]
    meant = batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(got[meant], wanted[meant], atol=1e-4)


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 10), (1, 12, 2), (1, 8, 6)])
def test_the_tower_takes_any_grid(bed, grid):
    folder, parent, _, _ = bed
    tower = load_module(parent.model).model.visual
    pixels = torch.randn(int(np.prod(grid)), 3 * 2 * 14 * 14)
    with torch.inference_mode():
        wanted = tower(pixels, grid_thw=torch.tensor([grid])).pooler_output
        torch.testing.assert_close(
            OneImage(tower)(pixels, torch.tensor([grid])), wanted, atol=1e-5, rtol=1e-4
        )
    got = VisionTower(folder / "onnxruntime", 1, "cpu").encode_image(pixels.numpy(), np.array(grid))
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


def test_only_one_image_goes_through_at_a_time(bed):
    session = VisionTower(bed[0] / "onnxruntime", 1, "cpu")
    [grids] = [one for one in session._session.get_inputs() if one.name == "image_grid_thw"]
    assert grids.shape == [1, 3]


@pytest.mark.parametrize("number", range(5))
def test_positions_are_those_of_transformers(bed, number):
    _, parent, dataset, _ = bed
    batch = dataset.batch(np.array([number]))
    grids = batch["image_grid_thw"][0]
    model = load_module(parent.model).model
    wanted, delta = model.get_rope_index(
        torch.from_numpy(batch["input_ids"]),
        torch.from_numpy(batch["mm_token_type_ids"]),
        torch.from_numpy(grids) if len(grids) else None,
    )
    offsets, after = position_offsets(batch["mm_token_type_ids"][0], list(grids), 2)
    assert np.array_equal(offsets + np.arange(offsets.shape[1]), wanted[:, 0].numpy())
    assert after == int(delta)


def test_tokens_without_their_image_are_refused(bed):
    folder, _, dataset, _ = bed
    batch = dataset.batch(np.array([0]))
    tower = VisionTower(folder / "onnxruntime", 1, "cpu")
    with pytest.raises(DataError, match="tokens stand for images"):
        tower.encode(
            batch["mm_token_type_ids"][:, :-6],
            batch["pixel_values"],
            batch["image_grid_thw"] * [1, 1, 2],
        )


def test_text_goes_on_behind_images_from_every_kind(bed):
    folder, parent, _, _ = bed
    pictures = [folder / "1.png", folder / "2.png"]

    def said(kind, model, images=pictures):
        pieces = []
        generate(
            kind, model, "w10 w11", GREEDY, threads=1, raw=False, said=pieces.append, images=images
        )
        return "".join(pieces)

    wanted = said("torch", parent.model)
    assert wanted
    assert wanted != said("torch", parent.model, [folder / "0.png"])
    for target in ("onnxruntime", "portable"):
        assert said("onnx", folder / target) == wanted


def test_what_stands_against_images_is_said(bed, tmp_path):
    folder, parent, _, _ = bed
    ask = {"threads": 1, "said": lambda _: None}
    with pytest.raises(DataError, match=r"no image .*gone\.png"):
        generate(
            "torch", parent.model, "w1", GREEDY, raw=False, images=[tmp_path / "gone.png"], **ask
        )
    with pytest.raises(UsageError, match="--raw"):
        generate("torch", parent.model, "w1", GREEDY, raw=True, images=[folder / "0.png"], **ask)
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(DataError, match=r"no\.png"):
        generate(
            "torch", parent.model, "w1", GREEDY, raw=False, images=[tmp_path / "no.png"], **ask
        )
    text = parent_in(tmp_path / "llama", "tiny-llama")
    with pytest.raises(DataError, match=r"no tokenizer\.json, preprocessor_config\.json"):
        generate("torch", text.model, "w1", GREEDY, raw=False, images=[folder / "0.png"], **ask)


def test_a_packed_tower_is_exported_with_what_it_holds(bed, tmp_path):
    _, parent, dataset, _ = bed
    small = awq(
        parent,
        tmp_path / "packed",
        format="compressed-tensors",
        vision={"bits": 8, "group_size": -1},
    )
    output, _ = exported(
        small, tmp_path / "out", {**IMAGES, "decoder": {"accuracy_level": 1}}, dataset
    )
    assert output.summary["vision"]["max_abs"] < 1e-5
    held = onnx.load(tmp_path / "out" / VISION_MODEL)
    assert {one.name for one in held.graph.input} == {"pixel_values", "image_grid_thw"}


def test_a_packed_head_is_carried_over(bed, tmp_path):
    _, parent, dataset, _ = bed
    head = {"bits": 4, "group_size": 32, "symmetric": True}
    small = awq(parent, tmp_path / "packed", format="compressed-tensors", symmetric=True, head=head)
    for target in ("onnxruntime", "portable"):
        fields = {
            **IMAGES,
            "decoder": {"target": target, "accuracy_level": 1 if target == "onnxruntime" else None},
        }
        output, _ = exported(small, tmp_path / target, fields, dataset)
        limit = (
            1e-9 if target == "onnxruntime" else 1e-3
        )  # ONNX Runtime rounds activations where it makes MatMulNBits itself
        assert all(one["kl"] < limit for one in output.summary["parity"])
        held = {
            one.name: one for one in onnx.load(tmp_path / target / "model.onnx").graph.initializer
        }
        assert held["head.data"].data_type in {onnx.TensorProto.UINT8, onnx.TensorProto.INT4}


def test_prompts_with_images_are_read_in_8_bits(bed, tmp_path):
    _, parent, dataset, _ = bed
    small = awq(parent, tmp_path / "packed", format="compressed-tensors")
    exported(small, tmp_path / "out", IMAGES, dataset)
    batch, tower = dataset.batch(np.array([1])), VisionTower(tmp_path / "out", 1, "cpu")
    shown = tower.encode_batch(batch)
    assert shown is not None
    said = []
    for fast in (False, True):
        decoder = OnnxDecoder(tmp_path / "out", 1, capacity=64, fast_prompts=fast)
        said.append(
            [
                decoder.forward(batch["input_ids"], logits_to_keep=0, images=shown).copy(),
                decoder.forward(np.array([[9]])).copy(),
            ]
        )
    for exact, near in zip(*said, strict=True):
        assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()


def test_a_wrong_tower_is_no_result(bed, tmp_path, monkeypatch):
    _, parent, dataset, _ = bed
    monkeypatch.setattr(OneImage, "_attention", staticmethod(lambda attention, x, cos, sin: 0 * x))
    with pytest.raises(ParityError, match=r"vision\.onnx"):
        exported(parent, tmp_path / "out", IMAGES, dataset)


def test_text_alone_needs_no_words_of_images(bed):
    """Whoever knows nothing of images feeds what any decoder takes."""
    folder, parent, _, _ = bed
    ids = np.arange(10, 22)[None]
    decoder = OnnxDecoder(folder / "onnxruntime", 1, capacity=16)
    with open_session("torch", parent.model, threads=1) as session:
        np.testing.assert_allclose(
            decoder.forward(ids, logits_to_keep=0), session.run({"input_ids": ids})["logits"], atol=1e-4
        )
