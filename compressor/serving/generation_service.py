"""Shared part of the two routes that generate text: from a request to a reply or a stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from compressor.errors import CompressError
from compressor.generation.adapters import with_adapter
from compressor.generation.chat_model import ChatModel
from compressor.generation.requests import EncodedPrompt, GenerationRequest, SamplingOptions
from compressor.serving.answers import Answers, context_length_error
from compressor.serving.api_errors import bad_request, from_compress_error
from compressor.serving.bodies import BodyReader
from compressor.serving.event_stream import EventStream, encode_json, unless_client_leaves
from compressor.serving.fields import GenerationFields
from compressor.serving.limits import ServerLimits
from compressor.serving.logprobs import TokenTexts
from compressor.serving.metrics import Metrics
from compressor.serving.sampling import sampling_options
from compressor.serving.state import ServerState
from compressor.serving.structured_output import requested_grammar

RequestT = TypeVar("RequestT", bound=GenerationFields)
PreparedT = TypeVar("PreparedT")
_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "<arg_key>")
"""Tokens that belong to the text of an answer, even where a tokenizer counts them as special."""


class Reply(ABC):
    """The answers to one request."""

    answers: Answers

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """Return the complete answers."""

    @abstractmethod
    def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the pieces of the answers; an error becomes the last of them."""


class GenerationService(ABC, Generic[RequestT, PreparedT]):
    """Answers the requests of one route."""

    request_class: ClassVar[type[Any]]

    def __init__(
        self, model: ChatModel, state: ServerState, bodies: BodyReader, metrics: Metrics
    ) -> None:
        self.model, self._state, self._bodies, self._metrics = model, state, bodies, metrics
        self.limits: ServerLimits = state.limits
        self.token_texts = TokenTexts(model.tokenizer)
        self.vocabulary: int = max(model.tokenizer.get_vocab().values()) + 1
        special = frozenset(model.tokenizer.all_special_tokens)
        self._keeps_special = not special.isdisjoint(_MARKERS)

    async def handle(self, request: Request) -> Response | ASGIApp:
        """Answer a request.

        Raises:
            ApiError: it is refused, or its answer fails.
            ClientLeftError: the client left before the answer was complete.
        """
        async with self._bodies.json(request) as value:
            fields = self.request_class.read(value)
            self._metrics.count_unknown(fields.unknown)
            self._state.check_model(fields.model)
            del value
            with self._state.preparation():
                try:
                    work = asyncio.to_thread(self.prepare, fields)
                    prepared = await unless_client_leaves(request.receive, work)
                except CompressError as error:
                    raise from_compress_error(error) from error
                reply = self.start(prepared)
        if fields.stream:
            return EventStream(reply.chunks(), reply.answers.close)
        try:
            result = await unless_client_leaves(request.receive, reply.whole())
        finally:
            reply.answers.close()
        return Response(encode_json(result), media_type="application/json")

    @abstractmethod
    def prepare(self, request: RequestT) -> PreparedT:
        """Return a request ready for the engine; called in a worker thread."""

    @abstractmethod
    def start(self, prepared: PreparedT) -> Reply:
        """Submit the answers of a request; called on the event loop."""

    def submit(self, requests: Sequence[GenerationRequest]) -> Answers:
        """Submit requests to the engine."""
        return Answers(self.model.engine, requests, self._metrics)

    def check_choices(self, count: int) -> None:
        """Check the number of answers of one request.

        Raises:
            ApiError: 400; there are too many.
        """
        if count > self.limits.max_choices:
            raise bad_request(
                f"n: {count} answers, and the server gives at most {self.limits.max_choices} to "
                "one request",
                "n",
            )

    def answer_limit(self, prompt: EncodedPrompt, requested: int | None) -> int:
        """Return the largest number of tokens of an answer: what is asked for, and what fits.

        Raises:
            ApiError: 400, ``context_length_exceeded``; the prompt leaves no place for an answer.
        """
        tokens, context = len(prompt.token_ids_T), self.model.context_length
        if tokens >= context:
            raise context_length_error(
                f"the prompt has {tokens} tokens, and the model's context has {context}, of which "
                "the answer needs one: shorten the prompt"
            )
        return min(requested or context, context - tokens)

    def grammar(self, request: GenerationFields) -> str | None:
        """Return the grammar that an answer follows, or None; the model is made ready for it.

        Raises:
            ApiError: 400; the grammar is invalid.
            CompressError: the tokenizer cannot follow grammars.
        """
        grammar = requested_grammar(request, self.limits)
        if grammar is not None:
            self.model.load_grammars()
        return grammar

    def sampling(
        self,
        request: GenerationFields,
        max_tokens: int,
        top_logprobs: int | None,
        grammar: str | None,
    ) -> SamplingOptions:
        """Return the sampling options of a request."""
        return sampling_options(
            request,
            self.limits,
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
            grammar=grammar,
            vocabulary=self.vocabulary,
            keep_special_tokens=self._keeps_special,
        )

    def adapted(self, prompt: EncodedPrompt, model: str | None) -> EncodedPrompt:
        """Return a prompt under the adapter that a request names as its model, if it names one."""
        return with_adapter(prompt, model if model in self.model.adapters else None)

    def head(self, reply_id: str, kind: str, model: str | None) -> dict[str, Any]:
        """Return the fields that every reply and chunk begins with.

        Args:
            reply_id: id of the reply.
            kind: kind of the object.
            model: name of the model in the request; an adapter's is that of the reply too.
        """
        return {
            "id": reply_id,
            "object": kind,
            "created": int(time.time()),
            "model": model if model in self.model.adapters else self._state.names[0],
        }


def new_id(prefix: str) -> str:
    """Return a new id of a reply."""
    return f"{prefix}-{secrets.token_hex(12)}"
