"""``/v1/completions``: texts or tokens in, their continuations out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from compressor.generation.requests import (
    EncodedPrompt,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    SamplingOptions,
    TextEvent,
    TokenLogprob,
)
from compressor.serving.answers import Answers, usage_of
from compressor.serving.api_errors import ApiError, bad_request
from compressor.serving.completion_request import CompletionRequest
from compressor.serving.generation_service import GenerationService, Reply, new_id
from compressor.serving.logprobs import completion_logprobs
from compressor.serving.sampling import seed_of_choice

_DEFAULT_TOKENS = 16
"""Tokens of an answer where a request does not state them, as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class PreparedCompletion:
    """A completion request that is ready for the engine."""

    request: CompletionRequest
    prompts: tuple[tuple[EncodedPrompt, SamplingOptions], ...]


class Completions(GenerationService[CompletionRequest, PreparedCompletion]):
    """Continues texts."""

    request_class = CompletionRequest

    def prepare(self, request: CompletionRequest) -> PreparedCompletion:
        """Encode the prompts and compile the grammar.

        Raises:
            ApiError: 400, which names the field at fault.
            CompressError: of the tokenizer.
        """
        if not request.prompts:
            raise bad_request("prompt: the list is empty", "prompt")
        self.check_choices(len(request.prompts) * (request.n or 1))
        grammar = self.grammar(request)
        prompts = []
        for prompt in request.prompts:
            encoded = self.adapted(self._encode(prompt), request.model)
            limit = request.max_tokens or _DEFAULT_TOKENS
            max_tokens = self.answer_limit(encoded, limit)
            sampling = self.sampling(request, max_tokens, request.logprobs, grammar)
            prompts.append((encoded, sampling))
        return PreparedCompletion(request, tuple(prompts))

    def _encode(self, prompt: str | list[int]) -> EncodedPrompt:
        if isinstance(prompt, str):
            return self.model.encode_text(prompt)
        return self.model.encode_tokens(prompt)

    def start(self, prepared: PreparedCompletion) -> Reply:
        """Submit the answers of a request."""
        requests = [
            GenerationRequest(
                prompt,
                replace(sampling, seed=seed_of_choice(sampling.seed, number)),
                self.limits.max_seconds,
            )
            for prompt, sampling in prepared.prompts
            for number in range(prepared.request.n or 1)
        ]
        return _CompletionReply(self, self.submit(requests), prepared)


class _CompletionReply(Reply):
    """The answers to one completion request."""

    def __init__(
        self, service: Completions, answers: Answers, prepared: PreparedCompletion
    ) -> None:
        self._service, self.answers, self._request = service, answers, prepared.request
        self._prompts = len(prepared.prompts)
        self._id = new_id("cmpl")

    async def whole(self) -> dict[str, Any]:
        """Return the complete answers."""
        count = len(self.answers.usages)
        texts, reasons = [""] * count, [""] * count
        tokens: list[list[TokenLogprob]] = [[] for _ in range(count)]
        async for number, event in self.answers.events():
            if isinstance(event, TextEvent):
                texts[number] += event.text
                tokens[number] += event.tokens
            else:
                reasons[number] = _finish_reason(event)
        choices = [
            self._choice(number, texts[number], tokens[number], reasons[number])
            for number in range(count)
        ]
        return {**self._head(), "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the pieces of the answers; an error becomes the last of them."""
        try:
            async for number, event in self.answers.events():
                if isinstance(event, TextEvent):
                    choice = self._choice(number, event.text, event.tokens, None)
                else:
                    choice = self._choice(number, "", (), _finish_reason(event))
                chunk = {**self._head(), "choices": [choice]}
                yield {**chunk, "usage": None} if self._request.includes_usage else chunk
        except ApiError as error:
            yield error.payload()
            return
        if self._request.includes_usage:
            yield {**self._head(), "choices": [], "usage": self._usage()}

    def _choice(
        self,
        number: int,
        text: str,
        tokens: list[TokenLogprob] | tuple[TokenLogprob, ...],
        reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None and tokens:
            texts = self._service.token_texts
            logprobs = completion_logprobs(tokens, texts)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self) -> dict[str, object]:
        return usage_of(self.answers.usages, self._prompts)

    def _head(self) -> dict[str, Any]:
        return self._service.head(self._id, "text_completion", self._request.model)


def _finish_reason(event: FinishEvent) -> str:
    return "stop" if event.reason is FinishReason.STOP else "length"
