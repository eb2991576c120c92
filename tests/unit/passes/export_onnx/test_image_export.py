"""Vision-language classes in ONNX: tower and decoder of any class, and generation as in torch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.graphs.decoder.interface import VISION_MODEL
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.processor import Processor
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower, position_offsets
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.torch.session import TorchSession
from passes.export_onnx import cached_run
from passes.export_onnx.cached.decoder import CachedDecoder
from passes.export_onnx.cached_run import export_cached
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.images.run import SeparateTowerError, merge_size, split_class
from tests.support.processors import message, write_conversations, write_picture
from tests.support.vision_language import write_vlm

GREEDY = SamplingOptions(max_tokens=6, temperature=0.0, top_p=1.0, seed=0)
EXPORTED = "qwen3_vl"
"""Has grids of patches, positions in three axes, and features behind the first layers."""
DIVIDED = [
    *("aya_vision", "gemma3", "glm4v_moe", "idefics3", "internvl", "llava", "qwen2_5_vl"),
    *("qwen2_vl", "qwen3_5", "qwen3_vl", "vipllava"),
]


class Traced(Exception):  # noqa: N818
    """The class has got as far as its trace."""


def write_talks(folder: Path) -> None:
    write_picture(folder / "wide.png", 56, 28)
    write_picture(folder / "high.png", 40, 90)
    write_conversations(
        folder / "talks.jsonl",
        [message("user", "w7 w8", "wide.png"), message("assistant", "w9 w10 w11")],
        [message("user", "w7", "high.png", "wide.png"), message("assistant", "w12")],
        [message("user", "w20 w21 w22 w7"), message("assistant", "w12 w30")],
    )


def load(folder: Path, model_type: str):
    config = ImageTextConfig(source="image-text", path="talks.jsonl", processor=model_type)
    return ImageText().load(config, SourceContext(folder))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the folder of a checkpoint, that of its graphs, the summary, and the data."""
    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder / EXPORTED, EXPORTED)
    write_talks(folder)
    dataset, out = load(folder, EXPORTED), folder / "out"
    out.mkdir()
    context = SimpleNamespace(
        data=lambda _: dataset,
        note=pytest.fail,
        progress=lambda *_: None,
        threads=1,
        artifact_id="artifact",
        seed=0,
    )
    model = read_description(folder / EXPORTED)
    config = ExportOnnxConfig(parity={"data": "talks"})
    output = export_cached(config, model.require(CachedGeneration), model, out, context)
    return SimpleNamespace(folder=folder, out=out, summary=output.summary, dataset=dataset)


def test_the_export_compares_images_with_torch(exported) -> None:
    ways = {way["way"] for way in exported.summary["parity"]}
    assert ways == {"windows", "with images", "token by token"}
    assert exported.summary["vision"]["images"] == 3
    assert (exported.out / VISION_MODEL).is_file()


def test_answers_about_images_equal_those_of_torch(exported) -> None:
    for images in (("wide.png",), ("high.png", "wide.png"), ()):
        prompt = Prompt("w7 w8", tuple(exported.folder / image for image in images))
        parent, graph = (
            generate(model_at(path), prompt, GREEDY, threads=1, on_text=lambda _: None).text
            for path in (exported.folder / EXPORTED, exported.out)
        )
        assert graph == parent


def test_whole_windows_equal_those_of_torch(exported) -> None:
    sample = exported.dataset.batch(np.array([1]))
    batch = {name: sample[name] for name in exported.dataset.input_names}
    with TorchSession(exported.folder / EXPORTED, 1, "cpu") as torch_session:
        expected = torch_session.run(batch)["logits"]
    with OnnxSession(exported.out, 1, "cpu") as session:
        assert {"pixel_values", "image_grid_thw"} < set(session.input_names)
        actual = session.run(batch)["logits"]
    np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.parametrize("model_type", DIVIDED)
def test_tower_and_decoder_of_a_class_compute_what_the_class_does(
    tmp_path: Path, model_type: str
) -> None:
    write_vlm(tmp_path / model_type, model_type)
    model = read_description(tmp_path / model_type)
    module, generation = load_module(model).float(), model.require(CachedGeneration)
    parts = split_class(module, generation, [], tmp_path / model_type)
    assert parts.tower.names[0] == "pixel_values"
    # Embeddings that the class does not insert itself are found by the comparison inside.
    width = module.get_input_embeddings().weight.shape[1]
    module.get_image_features = lambda **_: torch.zeros(1, width)
    with pytest.raises(SeparateTowerError):
        split_class(module, generation, [], tmp_path / model_type)


def test_a_class_that_loops_over_tokens_gets_one_token_per_call_and_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vlm(tmp_path / "qwen3_5", "qwen3_5")
    write_talks(tmp_path)
    dataset, notes, traced = load(tmp_path, "qwen3_5"), [], []

    def trace_decoder(decoder, _, extra=(), *, single=False):
        traced.append((type(decoder), extra, single))
        raise Traced

    monkeypatch.setattr(cached_run, "trace_decoder", trace_decoder)
    context = SimpleNamespace(
        data=lambda _: dataset, note=notes.append, progress=lambda *_: None, threads=1
    )
    model = read_description(tmp_path / "qwen3_5")
    config = ExportOnnxConfig(parity={"data": "talks"})
    with pytest.raises(Traced):
        export_cached(config, model.require(CachedGeneration), model, tmp_path / "out", context)
    assert traced == [(CachedDecoder, (), True)]
    assert notes == [
        "exported for texts alone, without images: several tokens are computed by a loop"
    ]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_of_image_tokens_are_those_of_the_class(tmp_path: Path, model_type: str) -> None:
    write_vlm(tmp_path / model_type, model_type)
    write_talks(tmp_path)
    processor = Processor(tmp_path / model_type)
    module = load_module(read_description(tmp_path / model_type))
    images = [str(tmp_path / name) for name in ("wide.png", "high.png")]
    encoding = processor.encode([message("user", "w7 w8", *images), message("user", "w9")])
    grids, types = encoding.arrays["image_grid_thw"], encoding.arrays["mm_token_type_ids"]
    offsets_3T, after = position_offsets(types, list(grids), merge_size(module))
    positions, deltas = module.model.get_rope_index(
        torch.from_numpy(encoding.input_ids)[None],
        mm_token_type_ids=torch.from_numpy(types)[None],
        image_grid_thw=torch.from_numpy(grids),
    )
    assert np.array_equal(offsets_3T + np.arange(len(types)), positions[:, 0].numpy())
    assert after == int(deltas[0, 0])


def test_tokens_without_their_images_are_an_error(exported) -> None:
    tower = VisionTower(exported.out, 1, "cpu")
    sample = exported.dataset.batch(np.array([0]))
    tokens = np.full((1, 3), 5)
    with pytest.raises(DataError, match="0 image tokens do not match"):
        tower.encode_batch({**sample, "input_ids": tokens})
