"""Vision-language classes: batches of conversations with images, and generation, as transformers.

Each class gets its real processor, and images of different sizes, one, two or none per sample.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.data.contract import Dataset, SourceContext
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.processor import Encoding, Processor
from compressor.runtimes.rows import RowOptions, SingleRow
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.rows import TorchRows
from tests.support.processors import message, write_conversations, write_picture
from tests.support.vision_language import VLMS, write_vlm

WITHOUT_TEXTS = {"paligemma"}
"""Classes whose processor refuses conversations without images."""
TOKENS = 6


@pytest.fixture(params=sorted(VLMS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder with a checkpoint, named after its type, pictures and conversations."""
    write_vlm(tmp_path / request.param, request.param)
    write_picture(tmp_path / "wide.png", 56, 28)
    write_picture(tmp_path / "high.png", 40, 90)
    conversations = [
        [message("user", "w7 w8", "wide.png"), message("assistant", "w9 w10 w11")],
        [message("user", "w7", "high.png", "wide.png"), message("assistant", "w12")],
        [message("user", "w20 w21 w22"), message("assistant", "w12 w30")],
    ]
    count = 2 if request.param in WITHOUT_TEXTS else 3
    write_conversations(tmp_path / "talks.jsonl", *conversations[:count])
    return tmp_path / request.param


def load(folder: Path) -> Dataset:
    config = ImageTextConfig(source="image-text", path="talks.jsonl", processor=folder.name)
    return ImageText().load(config, SourceContext(folder.parent))


def test_logits_of_a_batch_equal_those_of_its_samples(folder: Path) -> None:
    model, dataset = read_description(folder), load(folder)
    facts = ImageText().facts(
        ImageTextConfig(source="image-text", path="talks.jsonl", processor=folder.name),
        SourceContext(folder.parent),
    )
    assert tuple(fact.name for fact in facts.inputs or ()) == dataset.input_names
    module = load_module(model)

    def logits(samples: list[int]) -> torch.Tensor:
        batch = dataset.batch(np.array(samples))
        feeds = match_inputs(
            {name: batch[name] for name in dataset.input_names}, model.signature.inputs
        )
        with torch.inference_mode():
            result = module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()})
        return result["logits"]

    samples = list(range(len(dataset)))
    together = logits(samples)
    for sample in samples:
        [alone] = logits([sample])
        torch.testing.assert_close(together[sample, : len(alone)], alone, atol=5e-5, rtol=5e-5)


def encode(folder: Path, processor: Processor, *images: str) -> Encoding:
    paths = [str(folder.parent / image) for image in images]
    return processor.encode([message("user", "w7 w8", *paths)], add_generation_prompt=True)


def test_greedy_answers_equal_those_of_transformers(folder: Path) -> None:
    reference = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = Processor(folder)
    prompts = [("wide.png",), ("high.png", "wide.png"), ()]
    for images in prompts[: 2 if folder.name in WITHOUT_TEXTS else 3]:
        encoding = encode(folder, processor, *images)
        expected = generate(reference, processor, encoding)
        rows = TorchRows(folder, RowOptions(threads=1, rows=1, capacity=200))
        decoder = SingleRow(rows, encoding.arrays)
        tokens = [int(decoder.forward(encoding.input_ids).argmax())]
        while len(tokens) < TOKENS:
            tokens.append(int(decoder.forward(np.array(tokens[-1:])).argmax()))
        assert tokens == expected


def generate(model: torch.nn.Module, processor: Processor, encoding: Encoding) -> list[int]:
    """Return the greedy answer of transformers' own ``generate``."""
    inputs = {"input_ids": torch.from_numpy(encoding.input_ids)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name, array in encoding.arrays.items():
        if name in processor.token_inputs:
            inputs[name] = torch.from_numpy(array)[None]
        elif len(array):
            inputs[name] = torch.from_numpy(array)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(**inputs, max_new_tokens=TOKENS, **options)
    return output[0, len(encoding.input_ids) :].tolist()
