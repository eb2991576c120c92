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
from compressor.generation.prompt_encoding import PromptEncoder, TokenizedPrompt, check_tokens
from compressor.generation.requests import SamplingOptions
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.generation_rules import read_end_tokens, read_generation_rules
from compressor.runtimes.decoding import EncoderDecoderOptions, GenerationLimits
from compressor.runtimes.formats import StoredModel, recognize
from compressor.runtimes.memory import check_kv_cache_fits
from compressor.runtimes.rows import RowOptions, SingleRow
from compressor.runtimes.token_generation import Forward, generate_tokens, read_first_tokens

Array = np.ndarray[Any, Any]
_ADAPTER = "adapter"
_REMEDY = "copy the checkpoint's files again"


@dataclass(frozen=True, slots=True)
class _Task:
    """The arguments of ``generate``."""

    model: StoredModel
    prompt: Prompt
    sampling: SamplingOptions
    threads: int
    fast_prompts: bool


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open model and its encoded prompt."""

    tokenizer: Any
    prompt_tokens: int
    read_prompt: Callable[[], tuple[list[int], Array]]
    """Runs the prompt; returns its tokens and the logits [V] after the last one."""
    forward: Forward


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
    prepare = _prepare_encoder_decoder if limits.encoder_inputs else _prepare_decoder
    opened = prepare(_Task(model, prompt, sampling, threads, fast_prompts), limits)
    prompt_tokens, tokenizer = opened.prompt_tokens, opened.tokenizer
    rules = read_generation_rules(model.path)
    end_tokens = read_end_tokens(model.path, tokenizer)
    text = AnswerText(
        tokenizer, stop=sampling.stop, keep_special_tokens=sampling.keep_special_tokens
    )
    started = time.perf_counter()
    with _model_errors(model):
        prompt_ids, logits_V = opened.read_prompt()
    selector = TokenSelector(sampling, Vocabulary(len(logits_V), end_tokens, rules), prompt_ids)
    prefilled, generated, finished = 0.0, 0, False
    generated_tokens = generate_tokens(
        opened.forward, logits_V, selector.choose, sampling.max_tokens
    )
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
    limits = model.format.prompt_limits(model.path)
    if limits.encoder_inputs:
        if prompt.adapter is not None:
            raise UsageError(f"{model.path} is an encoder-decoder: its graphs take no adapters")
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


def _prepare_encoder_decoder(task: _Task, limits: GenerationLimits) -> _Opened:
    """Encode the input of an encoder-decoder, and open the model."""
    folder = task.model.path
    tokenizer, start, arrays = encode_input(folder, task.prompt, limits.encoder_inputs)
    check_tokens([*start.tokens, *start.languages], limits.vocabulary, tokenizer, folder)
    prompt_tokens = len(start.tokens) + bool(start.languages)
    capacity = _required_capacity(prompt_tokens, task.sampling, limits)
    options = EncoderDecoderOptions(task.threads, capacity, task.fast_prompts)
    decoder = task.model.format.open_encoder_decoder(folder, options)

    def read_prompt() -> tuple[list[int], Array]:
        decoder.encode(arrays)
        return read_first_tokens(decoder, start)

    return _Opened(tokenizer, prompt_tokens, read_prompt, decoder.forward)


def _prepare_decoder(task: _Task, limits: GenerationLimits) -> _Opened:
    """Encode a prompt, and open the model with one row."""
    folder, prompt = task.model.path, task.prompt
    encoder = PromptEncoder(folder, limits.vocabulary, takes_images=bool(prompt.images))
    encoded = _encode(encoder, prompt)
    ids_T = encoded.token_ids_T
    capacity = _required_capacity(len(ids_T), task.sampling, limits)
    adapters = {} if prompt.adapter is None else {_ADAPTER: prompt.adapter}
    options = RowOptions(task.threads, 1, capacity, task.fast_prompts, adapters=adapters)
    decoder = task.model.format.open_rows(folder, options)
    check_kv_cache_fits(decoder.cache_bytes(capacity), batch_size=1, tokens=capacity)
    images: Any = None
    if encoded.image_arrays is not None:
        images, _ = decoder.encode_images(ids_T, encoded.image_arrays, encoded.pictures)
    row = SingleRow(decoder, images, next(iter(adapters), None))
    return _Opened(
        encoder.tokenizer,
        len(ids_T),
        lambda: (ids_T.tolist(), row.forward(ids_T)),
        row.forward,
    )


def _encode(encoder: PromptEncoder, prompt: Prompt) -> TokenizedPrompt:
    """Return a prompt for a decoder.

    Raises:
        UsageError: there is no text, or images come without the chat template.
        DataError: an image cannot be read.
    """
    if prompt.images and prompt.raw:
        raise UsageError("images need the chat template: leave --raw out")
    if problems := [problem for image in prompt.images if (problem := file_problem(image))]:
        raise DataError("\n".join(problems))
    if prompt.raw or not encoder.has_chat_template:
        return encoder.encode_text(prompt.text)
    text: Any = prompt.text
    if prompt.images:
        parts = [{"type": "image", "path": str(real_path(image))} for image in prompt.images]
        text = [*parts, {"type": "text", "text": prompt.text}]
    return encoder.encode_chat([{"role": "user", "content": text}])
