"""A model that is open for many requests: tokenizer, prompts, and the generation engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from compressor.errors import UsageError
from compressor.foreign_files.limits import MEBIBYTE
from compressor.generation.answer import Answer
from compressor.generation.answer_text import AnswerText
from compressor.generation.engine import GenerationEngine
from compressor.generation.engine_records import EngineOptions
from compressor.generation.grammar import GrammarMatcher, GrammarVocabulary
from compressor.generation.prompt_encoding import Message, PromptEncoder, TokenizedPrompt
from compressor.generation.requests import EncodedPrompt, GenerationRequest, Listener
from compressor.generation.token_selection import TokenSelector, Vocabulary
from compressor.models.checkpoint.generation_rules import read_end_tokens, read_generation_rules
from compressor.runtimes.decoding import GenerationLimits
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.rows import RowDecoder, RowOptions

_MEMORY_SHARE = 0.6
"""Share of the free memory that keys and values may take."""
_MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Bounds of an open model."""

    threads: int
    rows: int = 8
    """Answers that are generated at once."""
    context: int | None = None
    """Tokens of prompt and answer together; None for those of the model, as far as memory goes."""
    cache_bytes: int | None = None
    """Bytes for keys and values of all rows; None for 60 % of the memory that is free."""
    feature_bytes: int = 256 << 20
    """Bytes for the embeddings of images, and as many for their pixels."""
    fast_prompts: bool = False
    """Read prompts with 8-bit copies of the packed weights (ONNX only)."""
    max_waiting: int = 64
    """Requests that wait for a row; more are refused."""
    max_guesses: int = 8
    """Tokens that are guessed at once from the prompt; 0 for none."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Name to folder of the adapters that prompts may name (ONNX with slots only)."""


class ChatModel:
    """An open model.

    Attributes:
        path: the model's folder.
        engine: generates the answers.
        tokenizer: the tokenizer of transformers.
        context_length: tokens of prompt and answer together.
        takes_images: True if prompts may hold images.
        has_chat_template: True if conversations can be turned into prompts.
        budget_tokens: tokens whose keys and values all rows together may hold.
        token_bytes: bytes of the keys and values of one token.
        cache_bytes: bytes of the keys and values that all rows together may hold.
        image_cache: counts of the cache of image embeddings; None where there is none.
        adapters: names of the adapters that a prompt may have (``with_adapter``).
    """

    def __init__(self, model: StoredModel, options: ChatOptions) -> None:
        """Open a model.

        Args:
            model: a torch, packed or onnx model that generates.
            options: bounds.

        Raises:
            UsageError: the model does not generate, or is an encoder-decoder; the context does
                not fit the model or the memory.
            DataError: there is no tokenizer.
            ModelError: the model cannot be opened.
        """
        self.path = model.path
        limits = decoder_limits(model)
        self.takes_images = limits.takes_images
        self._prompts = PromptEncoder(
            model.path,
            limits.vocabulary,
            takes_images=limits.takes_images,
            feature_bytes=options.feature_bytes,
        )
        self.tokenizer = self._prompts.tokenizer
        self.has_chat_template = self._prompts.has_chat_template
        self._grammars: GrammarVocabulary | None = None
        self._grammar_lock = threading.Lock()
        self._decoder = _open_rows(model, limits, options)
        self._prompts.vocabulary = limits.vocabulary or self._decoder.vocabulary
        budget = _budget_tokens(self._decoder, options)
        self._vocabulary = self._read_vocabulary()
        self.engine = GenerationEngine(
            self._decoder,
            self._start,
            EngineOptions(budget, max_waiting=options.max_waiting, max_guesses=options.max_guesses),
        )
        self.context_length = self.engine.context_length
        self.budget_tokens, self.token_bytes = budget, self._decoder.token_bytes
        self.cache_bytes = self._decoder.cache_bytes(budget, options.rows)
        self.image_cache = self._decoder.image_cache
        self.adapters = tuple(options.adapters)

    def encode_text(self, text: str) -> EncodedPrompt:
        """Return a text to continue; see ``PromptEncoder.encode_text``."""
        return self._encoded(self._prompts.encode_text(text))

    def encode_tokens(self, token_ids: Sequence[int]) -> EncodedPrompt:
        """Return token ids as a prompt; see ``PromptEncoder.encode_tokens``."""
        return self._encoded(self._prompts.encode_tokens(token_ids))

    def encode_chat(
        self,
        messages: Sequence[Message],
        template_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> EncodedPrompt:
        """Return a conversation with the start of the next answer.

        See ``PromptEncoder.encode_chat``.

        Raises:
            PassError: the vision tower failed.
        """
        return self._encoded(self._prompts.encode_chat(messages, template_options))

    def _encoded(self, prompt: TokenizedPrompt) -> EncodedPrompt:
        ids_T = prompt.token_ids_T
        if prompt.image_arrays is None:
            return EncodedPrompt(ids_T, ids_T)
        images, prefix_keys_T = self._decoder.encode_images(
            ids_T, prompt.image_arrays, prompt.pictures
        )
        return EncodedPrompt(ids_T, prefix_keys_T, images)

    def load_grammars(self) -> None:
        """Read the vocabulary for grammars, in about a second; does nothing the second time.

        Raises:
            UsageError: the tokenizer cannot follow grammars.
            MissingExtraError: llguidance is not installed.
        """
        with self._grammar_lock:
            if self._grammars is None:
                vocabulary = self._vocabulary
                self._grammars = GrammarVocabulary(
                    self.tokenizer, size=vocabulary.size, end_tokens=sorted(vocabulary.end_tokens)
                )

    def close(self) -> None:
        """End all answers."""
        self.engine.close()

    def _matcher(self, grammar: str | None) -> GrammarMatcher | None:
        """Return the grammar of one answer at its start; the vocabulary is read at the first."""
        if grammar is None:
            return None
        self.load_grammars()
        assert self._grammars is not None  # noqa: S101
        return self._grammars.matcher(grammar)

    def _read_vocabulary(self) -> Vocabulary:
        rules = read_generation_rules(self.path)
        ends = read_end_tokens(self.path, self.tokenizer)
        return Vocabulary(self._decoder.vocabulary, ends, rules)

    def _start(self, request: GenerationRequest, listener: Listener) -> Answer:
        """Return the answer to a request; see ``StartAnswer``."""
        sampling, adapter = request.sampling, request.prompt.adapter
        if adapter is not None and adapter not in self.adapters:
            raise UsageError(f"there is no adapter {adapter!r}: it was not loaded")
        selector = TokenSelector(
            sampling,
            self._vocabulary,
            request.prompt.token_ids_T.tolist(),
            self._matcher(sampling.grammar),
        )
        text = AnswerText(
            self.tokenizer,
            stop=sampling.stop,
            keep_special_tokens=sampling.keep_special_tokens,
        )
        return Answer(request, selector, text, listener, capacity=self.context_length)


def decoder_limits(model: StoredModel) -> GenerationLimits:
    """Return the limits of a model that continues tokens, and so answers conversations.

    Raises:
        UsageError: the model does not generate, or is an encoder-decoder.
    """
    limits = model.format.prompt_limits(model.path)
    if limits.encoder_inputs:
        raise UsageError(
            f"{model.path} is an encoder-decoder, such as a speech or translation model: it "
            "answers one input, and holds no conversation",
            remedy="run `autoglm-compress generate` with --prompt, --audio or --image",
        )
    return limits


def _open_rows(model: StoredModel, limits: GenerationLimits, options: ChatOptions) -> RowDecoder:
    context = options.context or limits.context_length
    if not _MIN_CONTEXT <= context <= limits.context_length:
        raise UsageError(
            f"a context of {context} tokens is impossible: the model has "
            f"{limits.context_length} positions",
            remedy=f"choose {_MIN_CONTEXT} to {limits.context_length}",
        )
    row_options = RowOptions(
        options.threads,
        options.rows,
        context,
        options.fast_prompts,
        options.feature_bytes,
        options.adapters,
    )
    try:
        return model.format.open_rows(model.path, row_options)
    except MemoryError as error:
        raise UsageError(
            f"not enough memory for {options.rows} rows of {context} tokens",
            remedy="lower the context, or the number of rows",
        ) from error


def _budget_tokens(decoder: RowDecoder, options: ChatOptions) -> int:
    """Return the number of tokens that all rows together may hold.

    Raises:
        UsageError: the memory does not hold the context that was asked for.
    """
    free_bytes = int(psutil.virtual_memory().available * _MEMORY_SHARE)
    cache_bytes = min(free_bytes, options.cache_bytes or free_bytes)
    row = decoder.options
    # A model without attention has a state of one size.
    tokens = max(cache_bytes - decoder.cache_bytes(0, row.rows), 0) // max(decoder.token_bytes, 1)
    needed = options.context or _MIN_CONTEXT
    if tokens < needed:
        raise UsageError(
            f"keys and values of {needed:,} tokens take "
            f"{decoder.cache_bytes(needed, row.rows) / MEBIBYTE:,.1f} MiB, and they may take "
            f"{cache_bytes / MEBIBYTE:,.1f} MiB",
            remedy="lower the context, free some memory, or raise --cache-mb if it was given",
        )
    return min(tokens, row.rows * row.capacity)
