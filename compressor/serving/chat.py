"""``/v1/chat/completions``: a conversation in, an answer or a stream of its pieces out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from compressor.generation.requests import (
    EncodedPrompt,
    FinishEvent,
    GenerationRequest,
    SamplingOptions,
    TextEvent,
)
from compressor.serving.answers import Answers, usage_of
from compressor.serving.api_errors import ApiError
from compressor.serving.chat_request import ChatRequest
from compressor.serving.choices import Choice, Delta
from compressor.serving.conversation import conversation
from compressor.serving.generation_service import GenerationService, Reply, new_id
from compressor.serving.logprobs import chat_logprobs
from compressor.serving.reasoning import OPEN
from compressor.serving.sampling import seed_of_choice

_END_TOKENS = 8
"""Tokens at the end of a prompt among which an opening tag of thinking is looked for."""


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat request that is ready for the engine."""

    request: ChatRequest
    prompt: EncodedPrompt
    sampling: SamplingOptions
    thinks_at_once: bool


class ChatCompletions(GenerationService[ChatRequest, PreparedChat]):
    """Answers chat requests."""

    request_class = ChatRequest

    def prepare(self, request: ChatRequest) -> PreparedChat:
        """Decode the images, apply the chat template, and compile the grammar.

        Raises:
            ApiError: 400, which names the field at fault.
            CompressError: of the template, the tokenizer, an image or the vision tower.
        """
        self.check_choices(request.n or 1)
        grammar = self.grammar(request)
        messages = conversation(request, self.limits, takes_images=self.model.takes_images)
        prompt = self.model.encode_chat(messages, request.template_options)
        prompt = self.adapted(prompt, request.model)
        max_tokens = self.answer_limit(prompt, request.token_limit)
        sampling = self.sampling(request, max_tokens, request.logprob_count, grammar)
        end = self.model.tokenizer.decode(prompt.token_ids_T[-_END_TOKENS:].tolist())
        # A grammar holds from the first token: the answer cannot continue the thinking.
        thinks_at_once = grammar is None and end.rstrip().endswith(OPEN)
        return PreparedChat(request, prompt, sampling, thinks_at_once)

    def start(self, prepared: PreparedChat) -> Reply:
        """Submit the answers of a request."""
        count = prepared.request.n or 1
        requests = [
            GenerationRequest(
                prepared.prompt,
                replace(prepared.sampling, seed=seed_of_choice(prepared.sampling.seed, number)),
                self.limits.max_seconds,
            )
            for number in range(count)
        ]
        return _ChatReply(self, self.submit(requests), prepared)


class _ChatReply(Reply):
    """The answers to one chat request."""

    def __init__(self, service: ChatCompletions, answers: Answers, prepared: PreparedChat) -> None:
        self._service, self.answers, self._request = service, answers, prepared.request
        self._choices = [
            Choice(prepared.request, thinks_at_once=prepared.thinks_at_once) for _ in answers.usages
        ]
        self._id = new_id("chatcmpl")

    async def whole(self) -> dict[str, Any]:
        """Return the complete answers."""
        totals = [Delta() for _ in self._choices]
        reasons = [""] * len(self._choices)
        async for number, event in self.answers.events():
            choice, total = self._choices[number], totals[number]
            if isinstance(event, TextEvent):
                choice.unreported_tokens += event.tokens
                delta = choice.add(event.text)
            else:
                delta = choice.end()
                reasons[number] = choice.finish_reason(event.reason)
            total.content += delta.content
            total.reasoning += delta.reasoning
            total.calls += delta.calls
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": number,
                    "message": self._message(self._choices[number], total),
                    "logprobs": self._logprobs(self._choices[number]),
                    "finish_reason": reasons[number],
                }
                for number, total in enumerate(totals)
            ],
            "usage": usage_of(self.answers.usages),
        }

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the pieces of the answers; an error becomes the last of them."""
        for number in range(len(self._choices)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        try:
            async for number, event in self.answers.events():
                for chunk in self._chunks_of(number, event):
                    yield chunk
        except ApiError as error:
            yield error.payload()
            return
        if self._request.includes_usage:
            usage = usage_of(self.answers.usages)
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunks_of(self, number: int, event: TextEvent | FinishEvent) -> list[dict[str, Any]]:
        choice = self._choices[number]
        if isinstance(event, TextEvent):
            choice.unreported_tokens += event.tokens
            delta = choice.add(event.text)
            return [self._chunk(number, self._delta(choice, delta))] if delta else []
        delta = choice.end()
        chunks = []
        if delta or choice.unreported_tokens:
            chunks.append(self._chunk(number, self._delta(choice, delta)))
        return [*chunks, self._chunk(number, {}, choice.finish_reason(event.reason))]

    def _chunk(
        self, number: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        piece = {
            "index": number,
            "delta": delta,
            "logprobs": self._logprobs(self._choices[number])
            if delta.get("role") is None
            else None,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head("chat.completion.chunk"), "choices": [piece]}
        return {**chunk, "usage": None} if self._request.includes_usage else chunk

    def _delta(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if delta.reasoning:
            result |= {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
        if delta.content:
            result["content"] = delta.content
        if delta.calls:
            result["tool_calls"] = choice.calls_json(delta.calls, numbered=True)
        return result

    def _message(self, choice: Choice, total: Delta) -> dict[str, Any]:
        content = None if total.calls and not total.content.strip() else total.content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._request.reasoning_visible:
            message |= {"reasoning": total.reasoning, "reasoning_content": total.reasoning}
        if total.calls:
            message["tool_calls"] = choice.calls_json(total.calls, numbered=False)
        return message

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        tokens = choice.take_tokens()
        if not self._request.logprobs or not tokens:
            return None
        return chat_logprobs(tokens, self._service.token_texts)

    def _head(self, kind: str) -> dict[str, Any]:
        return self._service.head(self._id, kind, self._request.model)
