"""Options, errors and figures of the generation engine."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.errors import CompressError, UsageError
from compressor.runtimes.rows import PIECE_TOKENS


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Bounds of the engine."""

    budget_tokens: int
    """Tokens whose keys and values all rows together may hold."""
    max_waiting: int = 64
    """Requests that wait for a row; more are refused."""
    max_waiting_tokens: int = 1 << 18
    """Prompt tokens of the requests that wait; more are refused."""
    piece_tokens: int = PIECE_TOKENS
    """Prompt tokens that are read between two steps of the other rows."""
    max_guesses: int = 8
    """Tokens that are guessed at once from the prompt; 0 for none."""


class EngineBusyError(CompressError):
    """The queue is full, or the engine accepts nothing more.

    Attributes:
        retry_after_seconds: estimated time until a request is accepted.
        closing: True if the engine accepts nothing more.
    """

    def __init__(self, what: str, retry_after_seconds: float, *, closing: bool = False) -> None:
        super().__init__(what)
        self.retry_after_seconds, self.closing = retry_after_seconds, closing


class ContextLengthError(UsageError):
    """A prompt fills the context, and leaves no place for an answer.

    Attributes:
        prompt_tokens: tokens of the prompt.
        context_length: tokens of prompt and answer together.
    """

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; the context has {context_length}, of which "
            "the answer needs one",
            remedy="shorten the prompt",
        )
        self.prompt_tokens, self.context_length = prompt_tokens, context_length


@dataclass(slots=True)
class EngineStatistics:
    """Counts since the start, and the present state."""

    rows: int = 0
    running: int = 0
    """Sequences that have a row."""
    waiting: int = 0
    held_tokens: int = 0
    """Tokens whose keys and values the rows hold."""
    rejected: int = 0
    failed: int = 0
    generated_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    preempted: int = 0
    """Sequences that had to give up their row, and were continued later."""
    steps: int = 0
    stepped_rows: int = 0
    """Rows of all steps; divided by ``steps``: the mean size of a batch."""
