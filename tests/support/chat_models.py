"""Open chat models on small checkpoints, and the collection of their answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compressor.generation.answer import Ticket
from compressor.generation.chat_model import ChatModel, ChatOptions
from compressor.generation.requests import (
    EncodedPrompt,
    Event,
    FailureEvent,
    FinishEvent,
    GenerationRequest,
    SamplingOptions,
    TextEvent,
)
from compressor.runtimes.formats import recognize

WAIT_SECONDS = 60.0
"""Longest time for an answer of a small model on a busy machine."""


@dataclass
class Collected:
    """The events of one answer."""

    ended: threading.Event = field(default_factory=threading.Event)
    events: list[Event] = field(default_factory=list)
    ticket: Ticket | None = None

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        self.events.append(event)
        if not isinstance(event, TextEvent):
            self.ended.set()

    def wait(self) -> Collected:
        """Return this answer after its end."""
        assert self.ended.wait(WAIT_SECONDS), "the answer did not end"
        return self

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(event.text for event in self.events if isinstance(event, TextEvent))

    @property
    def finish(self) -> FinishEvent:
        """The end of an answer that did not fail."""
        last = self.events[-1]
        assert isinstance(last, FinishEvent), last
        return last

    @property
    def failure(self) -> FailureEvent:
        """The end of an answer that failed."""
        last = self.events[-1]
        assert isinstance(last, FailureEvent), last
        return last


@contextmanager
def opened(folder: Path, **options: object) -> Iterator[ChatModel]:
    """Open a model with one thread; close it at the end."""
    chosen = ChatOptions(threads=1, **{"context": 256, "rows": 4, **options})  # type: ignore[arg-type]
    model = ChatModel(recognize(folder), chosen)
    try:
        yield model
    finally:
        model.close()


def prompt_of(tokens: np.ndarray | list[int]) -> EncodedPrompt:
    """Return token ids as a prompt."""
    ids = np.array(tokens, np.int64)
    return EncodedPrompt(ids, ids)


def begin(
    model: ChatModel,
    prompt: EncodedPrompt | list[int],
    max_tokens: int = 12,
    *,
    max_seconds: float | None = None,
    **sampling: object,
) -> Collected:
    """Submit a request that ignores end tokens, unless told otherwise."""
    if isinstance(prompt, list):
        prompt = prompt_of(prompt)
    options = SamplingOptions(max_tokens, **{"ignore_end": True, **sampling})  # type: ignore[arg-type]
    answer = Collected()
    request = GenerationRequest(prompt, options, max_seconds)
    answer.ticket = model.engine.submit(request, answer)
    return answer


def answer_to(
    model: ChatModel, prompt: EncodedPrompt | list[int], max_tokens: int = 12, **sampling: object
) -> Collected:
    """Return a complete answer."""
    return begin(model, prompt, max_tokens, **sampling).wait()
