"""Input of an encoder-decoder: text, a recording or an image, and the decoder's first tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError, UsageError
from compressor.generation.prompt import Prompt
from compressor.models.checkpoint.decoder_start import first_tokens
from compressor.models.families.transformers.chat_templates import load_tokenizer
from compressor.models.families.transformers.feature_extractor import FeatureExtractor

Array = np.ndarray[Any, Any]
_TOKENS, _PIXELS = "input_ids", "pixel_values"


def encode_input(
    folder: Path, prompt: Prompt, inputs: tuple[str, ...]
) -> tuple[Any, Array, dict[str, Array]]:
    """Return the tokenizer, the decoder's first tokens, and the encoder's arrays of one sample.

    The text of a prompt about a recording or an image begins the answer, such as Whisper's tokens
    for language and task.

    Args:
        folder: the model's folder.
        prompt: the text, recording or image.
        inputs: names of the encoder's inputs.

    Raises:
        DataError: files of tokenizer, extractor or processor are missing; the recording or the
            image cannot be read.
        UsageError: the prompt is not of the kind that the encoder takes.
    """
    tokenizer = load_tokenizer(folder)
    start = first_tokens(folder)
    if _TOKENS in inputs:
        arrays = _encode_text(tokenizer, prompt)
    else:
        encode = _encode_pixels if _PIXELS in inputs else _encode_audio
        arrays = encode(folder, prompt)
        if prompt.text:
            start += tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    if missing := [name for name in inputs if name not in arrays]:
        raise DataError(f"the files of {folder} give no {', '.join(missing)} for its encoder")
    return tokenizer, np.array(start, np.int64), {name: arrays[name] for name in inputs}


def _encode_text(tokenizer: Any, prompt: Prompt) -> dict[str, Array]:
    if prompt.audio or prompt.images:
        raise UsageError("the model's encoder takes text: it takes no recording and no image")
    if not prompt.text:
        raise UsageError("the prompt is empty", remedy="give some text with --prompt")
    encoding = tokenizer(prompt.text)
    return {name: np.array([values], np.int64) for name, values in encoding.items()}


def _encode_audio(folder: Path, prompt: Prompt) -> dict[str, Array]:
    if prompt.audio is None or prompt.images:
        raise UsageError(
            "the model's encoder takes a recording", remedy="name a WAV file with --audio"
        )
    return FeatureExtractor(folder).encode([prompt.audio])


def _encode_pixels(folder: Path, prompt: Prompt) -> dict[str, Array]:
    from transformers import AutoImageProcessor

    from compressor.data.pictures import WHITE, file_problem, open_picture

    if len(prompt.images) != 1 or prompt.audio:
        raise UsageError("the model's encoder takes one image", remedy="name it with --image")
    if problem := file_problem(prompt.images[0]):
        raise DataError(problem)
    try:
        classes: Any = AutoImageProcessor
        processor = classes.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises classes of several libraries
        raise DataError(
            f"{folder} holds no image processor that transformers opens: {error}"
        ) from error
    picture = open_picture(prompt.images[0], WHITE)
    return {_PIXELS: np.asarray(processor(picture, return_tensors="np")[_PIXELS])}
