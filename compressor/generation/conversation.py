"""A conversation with one model: its messages, and the answers one after the other."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compressor.errors import UsageError
from compressor.generation.adapters import with_adapter
from compressor.generation.answer import Ticket
from compressor.generation.chat_model import ChatModel, ChatOptions
from compressor.generation.requests import (
    Event,
    FailureEvent,
    FinishReason,
    GenerationRequest,
    SamplingOptions,
    TextEvent,
    Usage,
)
from compressor.runtimes.formats import StoredModel


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of a conversation."""

    text: str
    reason: FinishReason
    usage: Usage

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first one; None if there is only one."""
        usage = self.usage
        if usage.completion_tokens < 2 or usage.first_token_seconds is None:
            return None
        return (usage.completion_tokens - 1) / (usage.total_seconds - usage.first_token_seconds)


def open_chat_model(
    model: StoredModel,
    *,
    threads: int,
    fast_prompts: bool = False,
    adapters: Mapping[str, Path] = MappingProxyType({}),
) -> ChatModel:
    """Open a model for one conversation.

    Args:
        model: a torch, packed or onnx model that generates.
        threads: threads of the runtime.
        fast_prompts: read prompts with 8-bit copies of the packed weights (onnx only).
        adapters: name to folder of the adapters to load (onnx with slots only).

    Raises:
        UsageError: the model does not generate, is an encoder-decoder, or has no chat template.
        DataError: there is no tokenizer.
    """
    opened = ChatModel(
        model, ChatOptions(threads, rows=1, fast_prompts=fast_prompts, adapters=adapters)
    )
    if not opened.has_chat_template:
        opened.close()
        raise UsageError(
            f"{model.path} has no chat template: it continues texts, and holds no conversation",
            remedy="give a text with --prompt",
        )
    return opened


class Conversation:
    """Messages and answers in turn. Keys and values of earlier turns stay in the model's cache.

    Attributes:
        adapter: name of the adapter under which messages are answered, at first the first one that
            was loaded; None for the model alone. Under another adapter the conversation is read
            again.
    """

    def __init__(self, model: ChatModel, sampling: SamplingOptions) -> None:
        """Start without messages.

        Args:
            model: an open model with a chat template.
            sampling: how each answer is generated.
        """
        self._model, self._sampling = model, sampling
        self._messages: list[dict[str, Any]] = []
        self._ticket: Ticket | None = None
        self._cancelled = False
        self.adapter: str | None = next(iter(model.adapters), None)

    def ask(self, message: str, on_text: Callable[[str], None]) -> Reply:
        """Send a message and return the answer; both are kept for the next turn.

        Args:
            message: the user's message.
            on_text: called with each piece of the answer's text.

        Raises:
            CompressError: the answer failed, or the conversation exceeds the context; the message
                is not kept.
        """
        self._cancelled = False
        messages = [*self._messages, {"role": "user", "content": message}]
        prompt = with_adapter(self._model.encode_chat(messages), self.adapter)
        request = GenerationRequest(prompt, self._sampling)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ticket = self._model.engine.submit(request, events.put)
        try:
            if self._cancelled:  # since the start of this call
                self._ticket.cancel()
            reply = _received(events, on_text)
        finally:
            self._ticket.cancel()
            self._ticket = None
        if reply.text:
            self._messages = [*messages, {"role": "assistant", "content": reply.text}]
        return reply

    def cancel(self) -> None:
        """End the present answer, from another thread or a signal handler."""
        self._cancelled = True
        if self._ticket is not None:
            self._ticket.cancel()

    def use_adapter(self, name: str | None) -> None:
        """Answer the following messages under another adapter, or none.

        Raises:
            UsageError: no adapter of this name has been loaded.
        """
        if name is not None and name not in self._model.adapters:
            loaded = ", ".join(self._model.adapters) or "none: name some with --adapter"
            raise UsageError(f"there is no adapter {name!r}", remedy=f"loaded: {loaded}")
        self.adapter = name

    def clear(self) -> None:
        """Forget all messages."""
        self._messages = []


def _received(events: queue.SimpleQueue[Event], on_text: Callable[[str], None]) -> Reply:
    pieces: list[str] = []
    while True:
        event = events.get()
        if isinstance(event, FailureEvent):
            raise event.error
        if not isinstance(event, TextEvent):
            return Reply("".join(pieces), event.reason, event.usage)
        pieces.append(event.text)
        on_text(event.text)
