"""Answers of the engine to one HTTP request, as events on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from compressor.errors import CompressError
from compressor.generation.answer import Ticket
from compressor.generation.engine import GenerationEngine
from compressor.generation.engine_records import ContextLengthError, EngineBusyError
from compressor.generation.requests import (
    Event,
    FailureEvent,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    TextEvent,
    Usage,
)
from compressor.serving.api_errors import (
    ApiError,
    bad_request,
    from_compress_error,
    overloaded,
    unavailable,
)
from compressor.serving.metrics import Metrics


class Answers:
    """The answers that one HTTP request waits for; ``close`` frees their rows."""

    def __init__(
        self,
        engine: GenerationEngine,
        requests: Sequence[GenerationRequest],
        metrics: Metrics,
    ) -> None:
        """Submit all requests, or none.

        Raises:
            ApiError: 400 where a request is impossible, 429 where the queue is full, 503 while the
                engine drains.
        """
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._running: dict[int, Ticket] = {}
        self.usages: list[Usage | None] = [None] * len(requests)
        try:
            for number, request in enumerate(requests):
                self._running[number] = engine.submit(request, partial(self._listen, number))
        except CompressError as error:
            self._cancel()
            raise _refusal(error) from error

    def _listen(self, number: int, event: Event) -> None:
        """Take an event from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))
        except RuntimeError:  # the loop has ended: the server was stopped
            return

    async def events(self) -> AsyncIterator[tuple[int, TextEvent | FinishEvent]]:
        """Yield the events of all answers with the answer's number, until the last has ended.

        Raises:
            ApiError: an answer failed, or the server stopped it.
        """
        while self._running:
            number, event = await self._events.get()
            if isinstance(event, FailureEvent):
                del self._running[number]
                self._cancel()
                raise from_compress_error(event.error)
            if isinstance(event, FinishEvent):
                del self._running[number]
                self.usages[number] = event.usage
                self._metrics.record_answer(event.usage)
                if event.reason is FinishReason.CANCELLED:
                    self._cancel()
                    raise unavailable("the server is stopping", 1, "draining")
            yield number, event

    def close(self) -> None:
        """Cancel the answers that still run, and count them: their client left."""
        self._metrics.cancelled.inc(self._cancel())

    def _cancel(self) -> int:
        """Cancel the answers that still run; return their number."""
        count = len(self._running)
        for ticket in self._running.values():
            ticket.cancel()
        self._running.clear()
        return count


def _refusal(error: CompressError) -> ApiError:
    if isinstance(error, EngineBusyError):
        if error.closing:
            return unavailable(error.what, error.retry_after_seconds, "draining")
        return overloaded(error.what, error.retry_after_seconds)
    if isinstance(error, ContextLengthError):
        return context_length_error(str(error))
    return from_compress_error(error)


def context_length_error(message: str) -> ApiError:
    """Return the error for a prompt that is longer than the context."""
    return bad_request(message, "messages", "context_length_exceeded")


def usage_of(usages: Sequence[Usage | None], prompts: int = 1) -> dict[str, object]:
    """Return OpenAI's ``usage`` of the answers to one request.

    Args:
        usages: one for each answer; those to one prompt follow each other.
        prompts: number of prompts; each counts once, however many answers it has.
    """
    ended = [usage for usage in usages if usage is not None]
    answers_per_prompt = max(1, len(usages) // max(1, prompts))
    of_prompts = [usage for usage in usages[::answers_per_prompt] if usage is not None]
    prompt_tokens = sum(usage.prompt_tokens for usage in of_prompts)
    completion_tokens = sum(usage.completion_tokens for usage in ended)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.cached_tokens for usage in of_prompts)
        },
    }
