"""Tiny models and data in the layout that the examples' ``prepare.py`` fetch."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.families.transformers.family import Transformers
from tests.support.processors import message, write_conversations, write_processor
from tests.support.tiny_files import draw_pictures

WIDE = {"smollm2": {"hidden_size": 128, "intermediate_size": 256}, "glm4v": {}}
"""Fields of language models that differ from the preset."""


def write_stand_in(example: str, folder: Path, samples: int = 1) -> None:
    """Write a tiny model and data in the layout of an example's ``prepare.py``.

    Args:
        example: name of the example's folder.
        folder: the folder to write.
        samples: number of samples of each class or split.
    """
    family, preset = {
        "smollm2": (Transformers(), "tiny-llama"),
        "glm4v": (Transformers(), "tiny-glm4v"),
        "efficientnet": (ImageClassifier(), "tiny"),
        "minilm": (SentenceEncoder(), "tiny"),
    }[example]
    config = family.presets[preset]
    if example == "efficientnet":
        config = family.slim(config, image_size=224)
    if example == "minilm":
        config = family.slim(config, max_position_embeddings=64, vocab_size=512)
    if example in WIDE:  # groups of up to 128 weights divide all widths
        tree = config.model_dump(mode="json") | WIDE[example]
        if "text_config" in tree:
            tree["text_config"] |= {"intermediate_size": 256}
            tree["vision_config"] |= {"hidden_size": 128, "intermediate_size": 128}
        config = family.Config.model_validate_json(json.dumps(tree))
    family.save(family.build(config), config, folder / "model")
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
    for split in ("calibration", "evaluation"):
        (folder / "text" / split).mkdir(parents=True)
        (folder / "text" / split / "page.txt").write_text("w7 w8 w9 " * 90 * samples)
