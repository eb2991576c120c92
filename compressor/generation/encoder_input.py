"""Input of an encoder-decoder: text, a recording or an image, and the decoder's first tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError, UsageError
from compressor.foreign_files.libraries import library_errors
from compressor.generation.prompt import Prompt
from compressor.models.checkpoint.decoder_start import (
    DecoderStart,
    decoder_start,
    language_tokens,
)
from compressor.models.families.transformers.chat_templates import load_tokenizer
from compressor.models.families.transformers.feature_extractor import FeatureExtractor
from compressor.models.families.transformers.image_processor import open_image_processor

Array = np.ndarray[Any, Any]
_REMEDY = "copy the checkpoint's files again"
_TOKENS, _PIXELS = "input_ids", "pixel_values"


def encode_input(
    folder: Path, prompt: Prompt, inputs: tuple[str, ...]
) -> tuple[Any, DecoderStart, dict[str, Array]]:
    """Return the tokenizer, the decoder's first tokens, and the encoder's arrays of one sample.

    The text of a prompt about a recording or an image begins the answer. If its first token is one
    of the languages of a speech model, it replaces the tokens behind the start token.

    Args:
        folder: the model's folder.
        prompt: the text, recording or image.
        inputs: names of the encoder's inputs.

    Raises:
        DataError: files of tokenizer, extractor or processor are missing; the recording or the
            image cannot be read.
        UsageError: the prompt is not of the kind that the encoder takes, or the model has no
            tokens for its language or task.
    """
    tokenizer = load_tokenizer(folder)
    start = decoder_start(folder, language=prompt.language, task=prompt.task)
    if _TOKENS in inputs:
        arrays = _encode_text(tokenizer, prompt)
    else:
        encode = _encode_pixels if _PIXELS in inputs else _encode_audio
        arrays = encode(folder, prompt)
        if prompt.text:
            start = _with_text(folder, start, tokenizer, prompt)
    if missing := [name for name in inputs if name not in arrays]:
        raise DataError(f"the files of {folder} give no {', '.join(missing)} for its encoder")
    return tokenizer, start, {name: arrays[name] for name in inputs}


def _with_text(folder: Path, start: DecoderStart, tokenizer: Any, prompt: Prompt) -> DecoderStart:
    """Return the decoder's first tokens with the begin of the answer."""
    with library_errors(f"the tokenizer of {folder} cannot encode the prompt", DataError, _REMEDY):
        text = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    if text[0] not in language_tokens(folder):
        return DecoderStart((*start.tokens, *text), start.languages)
    if prompt.language is not None or prompt.task is not None:
        raise UsageError(
            "the prompt begins with the token of a language, and --language or --task is given",
            remedy="give one of them",
        )
    return DecoderStart((start.tokens[0], *text))


def _encode_text(tokenizer: Any, prompt: Prompt) -> dict[str, Array]:
    if prompt.audio or prompt.images:
        raise UsageError("the model's encoder takes text: it takes no recording and no image")
    if not prompt.text:
        raise UsageError("the prompt is empty", remedy="give some text with --prompt")
    with library_errors("the model's tokenizer cannot encode the prompt", DataError, _REMEDY):
        encoding = tokenizer(prompt.text)
        return {name: np.array([values], np.int64) for name, values in encoding.items()}


def _encode_audio(folder: Path, prompt: Prompt) -> dict[str, Array]:
    if prompt.audio is None or prompt.images:
        raise UsageError(
            "the model's encoder takes a recording", remedy="name a WAV file with --audio"
        )
    return FeatureExtractor(folder).encode([prompt.audio])


def _encode_pixels(folder: Path, prompt: Prompt) -> dict[str, Array]:
    from compressor.data.pictures import WHITE, file_problem, open_picture

    if len(prompt.images) != 1 or prompt.audio:
        raise UsageError("the model's encoder takes one image", remedy="name it with --image")
    if problem := file_problem(prompt.images[0]):
        raise DataError(problem)
    processor = open_image_processor(folder)
    picture = open_picture(prompt.images[0], WHITE)
    with library_errors(f"the processor of {folder} cannot encode an image", DataError, _REMEDY):
        return {_PIXELS: np.asarray(processor(picture, return_tensors="np")[_PIXELS])}
