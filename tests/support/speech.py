"""Encoder-decoders of text and speech with tokenizers and extractors, and WAV files."""

from __future__ import annotations

import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from tests.support.encoder_classes import CLASSES, TinyClass

RATE_HZ = 16000
_WORDS = 96


def save_encoder_decoder(folder: Path, name: str) -> SimpleNamespace:
    """Save a class of ``encoder_classes`` with a tokenizer whose word ``w7`` is token 7.

    Returns:
        The artifact that passes take.
    """
    case = CLASSES[name]
    if case.inputs == "mel":  # one second of sound
        fields = {**case.fields, "max_source_positions": 50}
        case = TinyClass(case.class_name, case.model_type, case.inputs, fields)
    model = case.build()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(_WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)
    if case.inputs == "mel":
        WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))


def write_wav(file: Path, seconds: float, seed: int = 0, **settings: Any) -> Path:
    """Write noise as 16-bit PCM; ``settings`` are ``rate_hz`` and ``channels``."""
    rate_hz, channels = settings.get("rate_hz", RATE_HZ), settings.get("channels", 1)
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 3000, (int(seconds * rate_hz), channels)).astype("<i2")
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate_hz)
        stream.writeframes(samples.tobytes())
    return file
