"""Small models and data under the names that the pages of docs/ use for a reader's own.

A page names them in a comment: ``<!-- stand-ins: checkpoint texts -->``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compressor.models.contract import Family
from tests.support.processors import (
    message,
    write_conversations,
    write_picture,
    write_processor,
)
from tests.support.speech import write_wav
from tests.support.speech_models import END, multilingual, save_speech_model
from tests.support.tiny_files import draw_pictures, tiny_network

WIDE = {"hidden_size": 128, "intermediate_size": 256}
"""Widths of a language model that groups of up to 128 weights divide."""
WIDE_VLM = {
    "text_config": {"intermediate_size": 256},
    "vision_config": {"hidden_size": 128, "intermediate_size": 128},
}
"""The same for the decoder and the vision tower of a vision-language model."""
WIDE_SPEECH = {
    "d_model": 128,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "max_target_positions": 160,
}
"""The same for a speech model."""
SPOKEN = (20, 21, 22)
"""Tokens of the transcripts."""
SHORT = {"max_position_embeddings": 64, "vocab_size": 512}
"""Sizes of a sentence encoder for the tokenizer of ``write_processor``."""


def write_model(family: Family[Any], preset: str, folder: Path, **fields: Any) -> None:
    """Write a model of a family's preset, with fields replaced; mappings are merged."""
    tree = family.presets[preset].model_dump(mode="json")
    for name, value in fields.items():
        tree[name] = tree[name] | value if isinstance(value, Mapping) else value
    config = family.Config.model_validate_json(json.dumps(tree))
    family.save(family.build(config), config, folder)


def write_llm(folder: Path) -> None:
    """Write a Llama checkpoint with a tokenizer whose word ``w7`` is token 7."""
    from compressor.models.families.transformers.family import Transformers

    write_model(Transformers(), "tiny-llama", folder / "checkpoint", **WIDE)
    write_processor(folder / "checkpoint")


def write_long_llm(folder: Path) -> None:
    """Write a Llama checkpoint for 4,096 tokens, and texts of more than 2,048."""
    from compressor.models.families.transformers.family import Transformers

    sizes = {**WIDE, "max_position_embeddings": 4096}
    write_model(Transformers(), "tiny-llama", folder / "checkpoint", **sizes)
    write_processor(folder / "checkpoint")
    for split in ("calibration", "validation", "evaluation"):
        (folder / "texts" / split).mkdir(parents=True)
        words = " ".join(f"w{10 + number * number % 499}" for number in range(4 * 2100))
        (folder / "texts" / split / "page.txt").write_text(words)


def write_bpe_llm(folder: Path) -> None:
    """Write a Llama checkpoint with a byte-level BPE tokenizer."""
    from tests.support.tokenizer_kinds import byte_level

    write_llm(folder)
    byte_level().save_pretrained(folder / "checkpoint")


def write_vlm(folder: Path) -> None:
    """Write a GLM-4V checkpoint with its processor."""
    from compressor.models.families.transformers.family import Transformers

    write_model(Transformers(), "tiny-glm4v", folder / "checkpoint", **WIDE_VLM)
    write_processor(folder / "checkpoint")


def write_encoder(folder: Path) -> None:
    """Write a sentence encoder with a tokenizer."""
    from compressor.models.families.sentence_encoder.family import SentenceEncoder

    write_model(SentenceEncoder(), "tiny", folder / "checkpoint", **SHORT)
    write_processor(folder / "checkpoint")


def write_texts(folder: Path) -> None:
    """Write texts for calibration and evaluation."""
    for split, count in (("calibration", 40 * 256), ("evaluation", 5 * 256)):
        (folder / "texts" / split).mkdir(parents=True)
        words = " ".join(f"w{10 + number * 7 % 500}" for number in range(count))
        (folder / "texts" / split / "page.txt").write_text(words)


def write_pairs(folder: Path) -> None:
    """Write queries with their passages."""
    (folder / "pairs").mkdir()
    for split in ("calibration", "test"):
        lines = [
            json.dumps({"query": f"w{number}", "passage": f"w{number} w{number + 1}"})
            for number in range(10, 42)
        ]
        (folder / "pairs" / f"{split}.jsonl").write_text("\n".join(lines))


def write_pictures(folder: Path) -> None:
    """Write folders of pictures, one for each class."""
    for split, count in (("train", 32), ("test", 16)):
        draw_pictures(folder / "pictures" / split, count)


def write_talks(folder: Path) -> None:
    """Write conversations about images."""
    write_picture(folder / "screen.png", 56, 56)
    talk = [message("user", "w11 w12", "screen.png"), message("assistant", "w21 w22 w23")]
    for split in ("calibration", "test"):
        write_conversations(folder / f"{split}.jsonl", *[talk] * 32)


def write_speech(folder: Path) -> None:
    """Write a Whisper with a small vocabulary, so that it soon ends, and recordings."""
    known = {END, *SPOKEN}
    suppressed = [token for token in range(96) if token not in known]
    generation = multilingual() | {"suppress_tokens": suppressed}
    save_speech_model(folder / "checkpoint", "whisper", WIDE_SPEECH, **generation)
    for split, count in (("calibration", 32), ("test", 4)):
        recordings = folder / "recordings" / split
        recordings.mkdir(parents=True)
        for number in range(count):
            write_wav(recordings / f"r{number}.wav", 0.5, seed=number)
            (recordings / f"r{number}.txt").write_text(" ".join(f"w{token}" for token in SPOKEN))
    write_wav(folder / "speech.wav", 0.5)


def write_onnx(folder: Path) -> None:
    """Write an ONNX file of a small network, and samples of its input."""
    import numpy as np

    (folder / "model.onnx").write_bytes(tiny_network())
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x)


def write_adapter(folder: Path) -> None:
    """Write a LoRA adapter of the language model, and a pair of keys."""
    from tests.support.deltas import write_keys, written_adapter

    shapes = {f"model.layers.{index}.self_attn.q_proj": (128, 128) for index in range(2)}
    written_adapter(folder / "adapter", folder / "checkpoint", shapes)
    write_keys(folder)


STAND_INS: Mapping[str, Callable[[Path], None]] = {
    "adapter": write_adapter,
    "bpe": write_bpe_llm,
    "encoder": write_encoder,
    "llm": write_llm,
    "long": write_long_llm,
    "onnx": write_onnx,
    "pairs": write_pairs,
    "pictures": write_pictures,
    "speech": write_speech,
    "talks": write_talks,
    "texts": write_texts,
    "vlm": write_vlm,
}
"""Name in a page to the function that writes it into a folder."""
