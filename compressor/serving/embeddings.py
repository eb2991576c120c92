"""``/v1/embeddings``: texts in, one vector each out, for sentence encoders.

Shapes: B texts, T tokens, H embedding width.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from compressor.data.contract import Batch
from compressor.errors import CompressError, UsageError
from compressor.models.families.transformers.chat_templates import load_tokenizer
from compressor.serving.api_errors import (
    bad_request,
    from_compress_error,
    unsupported,
)
from compressor.serving.batch_queue import QueueFullError, queue_full
from compressor.serving.bodies import BodyReader
from compressor.serving.event_stream import encode_json, unless_client_leaves
from compressor.serving.fields import LARGEST_INTEGER, Fields, Integer, Text, read_fields
from compressor.serving.metrics import Metrics
from compressor.serving.predictor import Prediction, Predictor
from compressor.serving.state import ServerState

Array = np.ndarray[Any, Any]
_IDS, _MASK = "input_ids", "attention_mask"
_HIDDEN_RANK = 3
_MAX_TEXTS = 2048
"""Texts of one request, as in OpenAI's API."""


class EmbeddingRequest(Fields):
    """Texts to embed."""

    model: Text | None = None
    input: Text | list[Text] | list[Integer] | list[list[Integer]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = None
    user: Text | None = None


class Embeddings:
    """Answers requests for embeddings."""

    def __init__(
        self, predictor: Predictor, state: ServerState, bodies: BodyReader, metrics: Metrics
    ) -> None:
        """Open the tokenizer beside the model.

        Raises:
            CompressError: the tokenizer cannot be opened, or the model takes more than tokens and
                their mask.
        """
        self._predictor, self._state, self._bodies = predictor, state, bodies
        self._metrics = metrics
        self._tokenizer = load_tokenizer(predictor.folder)
        if not is_text_encoder(predictor):
            raise UsageError(f"{predictor.folder} holds no encoder of texts")
        [ids] = [spec for spec in predictor.inputs if spec.name == _IDS]
        self._vocabulary = ids.below or len(self._tokenizer)
        self._max_tokens: int = ids.longest or min(
            self._tokenizer.model_max_length, LARGEST_INTEGER
        )

    async def handle(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            ApiError: 400 for texts that do not fit, 429 where too many requests wait.
            ClientLeftError: the client left.
        """
        async with self._bodies.json(request) as value:
            fields = read_fields(EmbeddingRequest, value)
            self._metrics.count_unknown(fields.unknown)
            self._state.check_model(fields.model)
            try:
                with self._state.preparation():
                    tokens = await asyncio.to_thread(self._tokens, fields)
                    prediction = self._submit(tokens)
                outputs = await unless_client_leaves(request.receive, prediction.each())
            except QueueFullError as error:
                raise queue_full(error) from error
            except CompressError as error:
                raise from_compress_error(error) from error
        vectors = list(map(_vector, outputs))
        if fields.dimensions not in {None, len(vectors[0])}:
            raise unsupported(
                "dimensions", f"dimensions: the model's vectors have {len(vectors[0])} values"
            )
        count = sum(map(len, tokens))
        is_base64 = fields.encoding_format == "base64"
        return Response(
            encode_json(
                {
                    "object": "list",
                    "model": self._state.names[0],
                    "data": [
                        {
                            "object": "embedding",
                            "index": number,
                            "embedding": _base64(vector) if is_base64 else vector.tolist(),
                        }
                        for number, vector in enumerate(vectors)
                    ],
                    "usage": {"prompt_tokens": count, "total_tokens": count},
                }
            ),
            media_type="application/json",
        )

    def _tokens(self, fields: EmbeddingRequest) -> list[list[int]]:
        """Return the tokens of each text.

        Raises:
            ApiError: 400; there are no texts or too many, or one is too long.
        """
        texts: Any = fields.input
        if isinstance(texts, str) or (texts and isinstance(texts[0], int)):
            texts = [texts]
        if not 0 < len(texts) <= _MAX_TEXTS:
            raise bad_request(f"input: expected 1 to {_MAX_TEXTS} texts", "input")
        return [self._tokens_of(text, f"input[{number}]") for number, text in enumerate(texts)]

    def _tokens_of(self, text: str | list[int], place: str) -> list[int]:
        """Return the tokens of one text, checked before the next one is encoded.

        Raises:
            ApiError: 400; there are none or too many, or the model lacks some.
        """
        tokens: list[int] = self._tokenizer(text)["input_ids"] if isinstance(text, str) else text
        if not tokens:
            raise bad_request(f"{place}: it has no tokens", "input")
        if len(tokens) > self._max_tokens:
            raise bad_request(
                f"{place}: {len(tokens)} tokens, and the model takes {self._max_tokens}",
                "input",
                "context_length_exceeded",
            )
        if not all(0 <= token < self._vocabulary for token in tokens):
            raise bad_request(f"{place}: tokens are from 0 to {self._vocabulary - 1}", "input")
        return tokens

    def _submit(self, tokens: list[list[int]]) -> Prediction:
        texts = [np.array([token_ids], np.int64) for token_ids in tokens]
        return self._predictor.submit_each(
            [{_IDS: ids_1T, _MASK: np.ones_like(ids_1T)} for ids_1T in texts]
        )


def is_text_encoder(predictor: Predictor) -> bool:
    """Return True if a model takes tokens alone and gives a vector for a text or its tokens."""
    required = {spec.name for spec in predictor.inputs if not spec.optional}
    return _IDS in required and required <= {_IDS, _MASK} and "logits" not in predictor.outputs


def _vector(outputs: Batch) -> Array:
    """Return the embedding of one text [H]: the model's, or the mean of its hidden states."""
    array = outputs.get("embedding", next(iter(outputs.values())))
    if array.ndim == _HIDDEN_RANK:
        array = array.mean(axis=1)
    vector_H: Array = array[0].astype(np.float32)
    return vector_H


def _base64(vector: Array) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
