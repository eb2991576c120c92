"""One answer while it is generated: its tokens, its text, and what ends it.

Shapes: V vocabulary entries, K positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from compressor.errors import CompressError
from compressor.generation.answer_text import AnswerText
from compressor.generation.prompt_lookup import PromptLookup
from compressor.generation.requests import (
    Event,
    FailureEvent,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    Listener,
    TextEvent,
    TokenLogprob,
    Usage,
)
from compressor.generation.token_selection import TokenSelector

Array = np.ndarray[Any, Any]


class Answer:
    """One sequence: prompt, generated tokens, and the listener that receives the text.

    Attributes:
        request: the request.
        row: the row with its keys and values; None while it waits.
        reason: why it ended; None before.
        arrived: time of the request, on the monotonic clock.
        waiting_since: time since which it waits for a row; later than ``arrived`` if it had to give
            up its row.
        cached_tokens: prompt tokens that were in a row.
        cancelled: set by another thread to end the answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        selector: TokenSelector,
        text: AnswerText,
        listener: Listener,
        *,
        capacity: int,
    ) -> None:
        """Start an answer.

        Args:
            request: the request.
            selector: selects its tokens.
            text: turns them into text.
            listener: receives the events.
            capacity: tokens of prompt and answer that a row holds.
        """
        prompt = request.prompt
        length = len(prompt.token_ids_T)
        size = min(capacity, length + request.sampling.max_tokens)
        self._ids, self._prefix_keys = np.empty(size, np.int64), np.empty(size, np.int64)
        self._ids[:length], self._prefix_keys[:length] = prompt.token_ids_T, prompt.prefix_keys_T
        self.request, self.prompt_tokens, self.tokens = request, length, length
        self._selector, self._text, self._listener = selector, text, listener
        self._lookup: PromptLookup | None = None
        self.arrived = self.waiting_since = time.monotonic()
        self._started: float | None = None
        self._first_token: float | None = None
        self.row: int | None = None
        self.reason: FinishReason | None = None
        self.cached_tokens = self.proposed_tokens = self.accepted_tokens = 0
        self.cancelled = False

    @property
    def token_ids(self) -> Array:
        """Tokens of prompt and answer, int64 [T]."""
        return self._ids[: self.tokens]

    @property
    def prefix_keys(self) -> Array:
        """Prefix keys of the tokens of prompt and answer, int64 [T]; see ``EncodedPrompt``."""
        return self._prefix_keys[: self.tokens]

    @property
    def generated(self) -> int:
        """Number of generated tokens."""
        return self.tokens - self.prompt_tokens

    @property
    def left(self) -> int:
        """Number of tokens that may follow."""
        return len(self._ids) - self.tokens

    @property
    def is_late(self) -> bool:
        """True if the time of the request is over."""
        limit = self.request.max_seconds
        return limit is not None and time.monotonic() - self.arrived > limit

    @property
    def seconds(self) -> float:
        """Time since the prompt was read first; 0 before."""
        return time.monotonic() - self._started if self._started else 0.0

    def start(self, cached_tokens: int) -> None:
        """Note that the prompt is being read; after a preemption nothing changes."""
        if self._started is None:
            self._started = time.monotonic()
            self.cached_tokens = min(cached_tokens, self.prompt_tokens)

    def guess(self, limit: int) -> list[int]:
        """Return up to ``limit`` tokens that may follow, from earlier occurrences."""
        if self._lookup is None:
            self._lookup = PromptLookup(self.token_ids.tolist())
        return self._lookup.propose(limit)

    def select_token(self, logits_V: Array) -> int:
        """Select the next token, and send its text; ``reason`` is set if it ends the answer.

        Raises:
            CompressError: no token can be selected.
        """
        token = self._selector.choose(logits_V)
        if self._first_token is None:
            self._first_token = time.monotonic()
        self._ids[self.tokens] = self._prefix_keys[self.tokens] = token
        self.tokens += 1
        if self._lookup is not None:
            self._lookup.update(token)
        if self._selector.ends(token):
            self.reason = FinishReason.STOP
            return token
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.request.sampling.top_logprobs is not None:
            logprobs = (self._selector.logprobs(logits_V, token, self._text.next_offset),)
        piece = self._text.add(token)
        if self._text.stopped is not None or self._selector.is_finished:
            self.reason = FinishReason.STOP
        elif not self.left:
            self.reason = FinishReason.LENGTH
        if piece or logprobs:
            self._send(TextEvent(piece, logprobs))
        return token

    def finish(self, reason: FinishReason) -> None:
        """Send the text that was held back, and the end of the answer."""
        self.reason = reason
        if piece := self._text.finish():
            self._send(TextEvent(piece))
        self._send(FinishEvent(reason, self._usage(), self._text.stopped))

    def fail(self, error: CompressError) -> None:
        """Send an error that ended the answer."""
        self._send(FailureEvent(error))

    def _send(self, event: Event) -> None:
        """Pass an event to the listener; a listener that fails wants no more."""
        try:
            self._listener(event)
        except Exception:  # noqa: BLE001  the other answers go on
            self.cancelled = True

    def _usage(self) -> Usage:
        now = time.monotonic()
        first = self._first_token
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            cached_tokens=self.cached_tokens,
            queue_seconds=(self._started or now) - self.arrived,
            first_token_seconds=None if first is None else first - self.arrived,
            total_seconds=now - self.arrived,
            proposed_tokens=self.proposed_tokens,
            accepted_tokens=self.accepted_tokens,
        )


class Ticket:
    """A request that was accepted."""

    def __init__(self, answer: Answer, wake: Callable[[], None]) -> None:
        self._answer, self._wake = answer, wake

    def cancel(self) -> None:
        """End the answer before its next token; does nothing if it has ended."""
        self._answer.cancelled = True
        self._wake()
