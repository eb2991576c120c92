"""Generate text from a model, token by token, and time it.

Shapes: T tokens, V vocabulary entries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.artifact import MANIFEST
from compressor.data.pictures import file_problem
from compressor.engine.run.runner import load_given
from compressor.errors import DataError, ModelError, UsageError
from compressor.foreign_files.libraries import library_errors
from compressor.foreign_files.real_path import real_path
from compressor.generation.answer_text import AnswerText
from compressor.generation.encoder_input import encode_input
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.decoder_start import DecoderStart
from compressor.models.checkpoint.generation_rules import read_end_tokens, read_generation_rules
from compressor.models.families.transformers.chat_templates import load_tokenizer, render_chat
from compressor.models.families.transformers.processor import Processor
from compressor.runtimes.decoding import DecoderOptions, GenerationLimits
from compressor.runtimes.formats import StoredModel, recognize
from compressor.runtimes.token_generation import generate_tokens, read_prompt

Array = np.ndarray[Any, Any]
_REMEDY = "copy the checkpoint's files again"


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated answer and its speed."""

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool
    """True if the model ended the answer, False if `--max-tokens` did."""
    prefill_tokens_per_second: float
    """Prompt tokens per second, up to the first token of the answer."""
    decode_tokens_per_second: float | None
    """Tokens per second after the first token; None if there is only one."""
    runtime_threads: int

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def model_at(path: Path) -> StoredModel:
    """Return the model of an artifact, every file verified, or of a folder in an installed format.

    Raises:
        UsageError: the path is not a folder.
        ModelError: no installed format recognizes the folder.
        DamagedArtifactError: a file differs from the manifest.
    """
    if (path / MANIFEST).is_file():
        return StoredModel.of(load_given(path))
    if not path.is_dir():
        raise UsageError(
            f"{path} is not a folder", remedy="name an artifact, or the folder of a model"
        )
    return recognize(path)


def generate(
    model: StoredModel,
    prompt: Prompt,
    sampling: SamplingOptions,
    *,
    threads: int,
    fast_prompts: bool = False,
    on_text: Callable[[str], None],
) -> Generated:
    """Generate an answer to a prompt, or continue it.

    Args:
        model: a torch, packed or onnx model that generates.
        prompt: the text and images to answer.
        sampling: how each next token is selected.
        threads: threads of the runtime.
        fast_prompts: read the prompt with 8-bit copies of the packed weights (onnx only).
        on_text: called with each piece of text as soon as it is complete.

    Raises:
        DataError: there is no tokenizer, or it gives no token for the prompt, or tokens beyond the
            embedding; an image or a recording cannot be read, or there is no processor.
        ModelError: the model fails on the prompt.
        UsageError: the model does not generate, takes no images, or has no packed weights for
            ``fast_prompts``; prompt and answer exceed its context.
    """
    limits = _limits(model, prompt)
    images: dict[str, Array] | None = None
    if limits.encoder_inputs:
        tokenizer, start, encoder_arrays = encode_input(model.path, prompt, limits.encoder_inputs)
    else:
        tokenizer, token_ids_T, images = _encode(model.path, prompt)
        start = DecoderStart(tuple(token_ids_T.tolist()))
    _check_vocabulary(model.path, start, tokenizer, limits)
    prompt_tokens = len(start.tokens) + bool(start.languages)
    capacity = _required_capacity(prompt_tokens, sampling, limits)
    rules = read_generation_rules(model.path)
    end_tokens = read_end_tokens(model.path, tokenizer)
    options = DecoderOptions(threads, capacity, fast_prompts)
    decoder = model.format.open_decoder(model.path, options)
    text = AnswerText(
        tokenizer, stop=sampling.stop, keep_special_tokens=sampling.keep_special_tokens
    )
    started = time.perf_counter()
    with _model_errors(model):
        if limits.encoder_inputs:
            decoder.encode(encoder_arrays)
        prompt_ids, logits_V = read_prompt(decoder, start, images)
    selector = TokenSelector(sampling, Vocabulary(len(logits_V), end_tokens, rules), prompt_ids)
    prefilled, generated, finished = 0.0, 0, False
    generated_tokens = generate_tokens(decoder, logits_V, selector.choose, sampling.max_tokens)
    for token in _with_model_errors(model, generated_tokens):
        prefilled = prefilled or time.perf_counter()
        generated += 1
        finished = selector.ends(token)
        if not finished:
            _pass_on(text.add(token), on_text)
            finished = text.stopped is not None
        if finished:
            break
    _pass_on(text.finish(), on_text)
    seconds = time.perf_counter() - prefilled
    return Generated(
        text=text.text,
        prompt_tokens=prompt_tokens,
        tokens=generated,
        finished=finished,
        prefill_tokens_per_second=prompt_tokens / (prefilled - started),
        decode_tokens_per_second=(generated - 1) / seconds if generated > 1 else None,
        runtime_threads=threads,
    )


def _model_errors(model: StoredModel) -> AbstractContextManager[None]:
    """Turn what the model raises into an error of its folder."""
    return library_errors(f"{model.path} fails on this prompt", ModelError, _REMEDY)


def _with_model_errors(model: StoredModel, tokens: Iterator[int]) -> Iterator[int]:
    with _model_errors(model):
        yield from tokens


def _pass_on(piece: str, on_text: Callable[[str], None]) -> None:
    if piece:
        on_text(piece)


def _limits(model: StoredModel, prompt: Prompt) -> GenerationLimits:
    """Return the limits of a model; raise ``UsageError`` if it cannot take the prompt's files."""
    limits = model.format.generation_limits(model.path)
    if limits.encoder_inputs:
        return limits
    if prompt.images and not limits.takes_images:
        raise UsageError(f"{model.path} holds a text model: it takes no images")
    if prompt.audio is not None:
        raise UsageError(f"{model.path} holds no speech model: it takes no recordings")
    if prompt.language is not None or prompt.task is not None:
        raise UsageError(
            f"{model.path} has no tokens for languages and tasks: it is no encoder-decoder",
            remedy="state them in the prompt",
        )
    return limits


def _check_vocabulary(
    folder: Path, start: DecoderStart, tokenizer: Any, limits: GenerationLimits
) -> None:
    """Check that the embedding has a row for every token; raise ``DataError`` if one is missing."""
    if limits.vocabulary is None:
        return
    tokens = {*start.tokens, *start.languages}
    beyond = sorted(token for token in tokens if token >= limits.vocabulary)
    if beyond:
        names = ", ".join(
            f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in beyond[:5]
        )
        raise DataError(
            f"the tokenizer of {folder} gives the prompt tokens that the model has no row for: "
            f"{names}; its embedding has {limits.vocabulary} rows",
            remedy="put the tokenizer of this model into the folder, or resize the embedding in "
            "transformers: `model.resize_token_embeddings(len(tokenizer))`",
        )


def _required_capacity(
    prompt_tokens: int, sampling: SamplingOptions, limits: GenerationLimits
) -> int:
    """Return the number of tokens of prompt and answer; raise ``UsageError`` if it is too large."""
    capacity = prompt_tokens + sampling.max_tokens
    if capacity > limits.context_length:
        raise UsageError(
            f"prompt and answer have {capacity} tokens; "
            f"the model's context has {limits.context_length}",
            remedy="shorten the prompt, or lower --max-tokens",
        )
    return capacity


def _encode(folder: Path, prompt: Prompt) -> tuple[Any, Array, dict[str, Array] | None]:
    """Return the tokenizer, the token ids, and the processor's arrays of the images if any."""
    if prompt.images:
        return _encode_with_images(folder, prompt)
    tokenizer = load_tokenizer(folder)
    return tokenizer, _encode_text(tokenizer, prompt), None


def _encode_text(tokenizer: Any, prompt: Prompt) -> Array:
    with library_errors("the model's tokenizer cannot encode the prompt", DataError, _REMEDY):
        if tokenizer.chat_template and not prompt.raw:
            messages = [{"role": "user", "content": prompt.text}]
            text = render_chat(tokenizer, messages, add_generation_prompt=True)
            encoding = tokenizer(text, add_special_tokens=False)
        else:
            encoding = tokenizer(prompt.text)
        token_ids = encoding["input_ids"]
    if not len(token_ids):
        raise UsageError("the prompt is empty", remedy="give some text with --prompt")
    return np.array(token_ids, dtype=np.int64)


def _encode_with_images(folder: Path, prompt: Prompt) -> tuple[Any, Array, dict[str, Array]]:
    if prompt.raw:
        raise UsageError("images need the chat template: leave --raw out")
    if problems := [problem for image in prompt.images if (problem := file_problem(image))]:
        raise DataError("\n".join(problems))
    processor = Processor(folder)
    parts = [{"type": "image", "path": str(real_path(image))} for image in prompt.images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}]
    names = ", ".join(map(str, prompt.images))
    with library_errors(f"the processor of {folder} fails on {names}", DataError, _REMEDY):
        encoding = processor.encode(messages, add_generation_prompt=True)
    return processor.processor.tokenizer, encoding.input_ids, encoding.arrays
