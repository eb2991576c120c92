"""Tiny models and data in the layout that the examples' ``prepare.py`` fetch."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.families.transformers.family import Transformers
from tests.support.processors import message, write_conversations, write_processor
from tests.support.stand_ins import SHORT, WIDE, WIDE_VLM, write_model
from tests.support.tiny_files import draw_pictures
from tests.support.tokenizer_kinds import byte_level

_MODELS = {
    "smollm2": (Transformers(), "tiny-llama", {**WIDE, "max_position_embeddings": 8192}),
    "glm4v": (Transformers(), "tiny-glm4v", WIDE_VLM),
    "efficientnet": (ImageClassifier(), "tiny", {"image_size": 224}),
    "minilm": (SentenceEncoder(), "tiny", SHORT),
}
"""Example to the family and preset of its model, and to the fields that differ."""


def write_stand_in(example: str, folder: Path, samples: int = 1) -> None:
    """Write a tiny model and data in the layout of an example's ``prepare.py``.

    Args:
        example: name of the example's folder.
        folder: the folder to write.
        samples: number of samples of each class or split.
    """
    family, preset, fields = _MODELS[example]
    write_model(family, preset, folder / "model", **fields)
    if example == "efficientnet":
        for split in ("train", "test"):
            draw_pictures(folder / split, samples)
            for number, class_folder in enumerate(sorted((folder / split).iterdir())):
                class_folder.rename(folder / split / str(number))
        return
    write_processor(folder / "model")
    if example == "glm4v":
        (folder / "conversations").mkdir()
        for split in ("calibration", "test"):
            write_conversations(
                folder / "conversations" / f"{split}.jsonl",
                *[[message("user", "open the camera"), message("assistant", "w7 w8")]] * samples,
            )
        return
    if example == "minilm":
        (folder / "pairs").mkdir()
        for split in ("calibration", "test"):
            (folder / "pairs" / f"{split}.jsonl").write_text(
                "".join(
                    json.dumps({"query": f"w{index + 9}", "passage": f"w{index + 9} w8"}) + "\n"
                    for index in range(samples)
                )
            )
        return
    byte_level().save_pretrained(folder / "model")  # as SmolLM2 has
    for split in ("calibration", "evaluation"):
        (folder / "text" / split).mkdir(parents=True)
        (folder / "text" / split / "page.txt").write_text("w7 w8 w9 " * 90 * samples)
