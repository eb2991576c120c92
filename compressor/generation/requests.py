"""Requests to the generation engine, and the events with which it answers them.

Shapes: T prompt tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from compressor.errors import CompressError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Selection of the tokens of one answer, and what ends it."""

    max_tokens: int
    temperature: float = 0.0
    """0: always the most probable token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this total probability (nucleus sampling,
    Holtzman et al. 2020)."""
    top_k: int = 0
    """Sample from this many of the most probable tokens; 0 for all."""
    min_p: float = 0.0
    """Exclude tokens below this share of the largest probability (Nguyen et al. 2024)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit if it was generated."""
    repetition_penalty: float | None = None
    """Divisor of the positive logits, and factor of the negative ones, of tokens that occurred in
    prompt or answer (Keskar et al. 2019); None for the model's own."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    seed: int | None = None
    """Seed of the random numbers; None for another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_tokens: frozenset[int] = frozenset()
    """Tokens that end the answer, beside those of the model's files; they are not part of it."""
    ignore_end: bool = False
    """Continue behind the tokens that end an answer."""
    min_tokens: int = 0
    """Number of tokens before the answer may end."""
    top_logprobs: int | None = None
    """Number of alternatives whose log probabilities are reported with each token; None for no log
    probabilities."""
    grammar: str | None = None
    """Grammar that the answer follows, as a serialized grammar of llguidance."""
    keep_special_tokens: bool = False
    """Keep special tokens in the text of the answer."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The tokens of a prompt, with its images if it has any."""

    token_ids_T: Array
    """int64."""
    prefix_keys_T: Array
    """int64: two prompts with equal prefix keys up to a position have the same keys and values up
    to there. That of a text token is its id; that of an image token also covers the image."""
    images: Any = None
    """The runtime's inputs for the images among the tokens; None for a text."""
    adapter: str | None = None
    """Name of the adapter under which the prompt is read and answered; None for the base."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate."""

    prompt: EncodedPrompt
    sampling: SamplingOptions
    max_seconds: float | None = None
    """Time after which the answer is cut, from the arrival of the request; None for no limit."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and its log probability, before any change of the logits."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable tokens and their log probabilities, in falling order."""
    text_offset: int = 0
    """Characters of the answer before the token. Tokens that share a character have one offset; a
    token of a stop text has that which it would have if the text went on."""


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """An end token, a stop token or a stop text, or the end of the grammar."""
    LENGTH = "length"
    """The largest number of tokens, or the context of the model."""
    TIME = "time"
    """The time limit."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, and when they came."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were in the cache."""
    queue_seconds: float
    first_token_seconds: float | None
    """From the arrival of the request to its first token; None if there was none."""
    total_seconds: float
    proposed_tokens: int = 0
    """Tokens that were guessed from the prompt."""
    accepted_tokens: int = 0
    """Guessed tokens that the model generated as well."""


@dataclass(frozen=True, slots=True)
class TextEvent:
    """New text of an answer; it never ends inside of a character or a possible stop text."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """The tokens generated since the last event, if their log probabilities were requested."""


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage
    stop: str | None = None
    """The stop text that ended it."""


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """An error that ended an answer; no other event follows."""

    error: CompressError


Event = TextEvent | FinishEvent | FailureEvent
Listener = Callable[[Event], None]
"""Called on the engine's thread, and must return at once."""
