"""``/v1/predict``: named arrays or images in, named outputs out.

A body is JSON, or a .safetensors file with one array for each input, which costs the server least.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from compressor.data.contract import Batch
from compressor.errors import DataError
from compressor.serving.api_errors import ApiError, bad_request
from compressor.serving.arrays import ArrayReader, arrays_of_safetensors, encode_npy
from compressor.serving.batch_queue import QueueFullError, queue_full
from compressor.serving.bodies import JSON, BodyReader, parse_json
from compressor.serving.event_stream import encode_json, unless_client_leaves
from compressor.serving.fields import Fields, Text, read_fields
from compressor.serving.metrics import Metrics
from compressor.serving.predictor import Predictor
from compressor.serving.state import ServerState

SAFETENSORS = "application/vnd.safetensors"
_DECODED_AT_ONCE = 1 << 18
"""Bytes of a request that are decoded on the event loop, which takes less than a millisecond."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0)


class PredictRequest(Fields):
    """Inputs of one or more samples; the first axis counts them."""

    model: Text | None = None
    inputs: dict[str, Any]
    """Lists of numbers; or ``{"npy": base64}`` or ``{"image_url": "data:…"}``."""
    outputs: list[Text] | None = None
    """Names of the outputs to return; all by default."""
    encoding: Literal["json", "npy"] | None = None
    """Form of the outputs: lists of numbers, or base64 of .npy files."""


class Predict:
    """Answers requests for predictions."""

    def __init__(
        self, predictor: Predictor, state: ServerState, bodies: BodyReader, metrics: Metrics
    ) -> None:
        self._predictor, self._state, self._bodies = predictor, state, bodies
        self._metrics = metrics
        self._reader = ArrayReader(predictor.inputs, predictor.folder, state.limits.max_pixels)
        self._seconds = metrics.histogram("prediction_seconds", "Time of a prediction", _SECONDS)
        queue = predictor.queue
        metrics.gauge("waiting", "Samples that wait", lambda: queue.waiting_samples)
        metrics.gauge("running", "Samples that are being computed", lambda: queue.running_samples)
        metrics.gauge("predictions", "Samples predicted", lambda: queue.predictions)
        metrics.gauge("batches", "Batches computed", lambda: queue.batches)

    async def handle(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            ApiError: 400 for inputs that do not fit, 429 where too many wait.
            ClientLeftError: the client left.
        """
        started = time.perf_counter()
        async with self._bodies.content(request, (JSON, SAFETENSORS)) as (type_, body):
            try:
                with self._state.preparation():
                    if type_ == SAFETENSORS:
                        fields, arrays = PredictRequest(inputs={}), arrays_of_safetensors(body)
                    else:
                        fields, arrays = await self._read(body)
                    names = self._output_names(fields)
                    prediction = self._predictor.submit(arrays)
                outputs = await unless_client_leaves(request.receive, prediction.joined())
            except QueueFullError as error:
                raise queue_full(error) from error
            except DataError as error:
                raise bad_request(error.what, "inputs") from error
        answer = self._body(outputs, names, fields.encoding or "json")
        self._seconds.observe(time.perf_counter() - started)
        return Response(answer, media_type=JSON)

    async def _read(self, body: bytes) -> tuple[PredictRequest, dict[str, Any]]:
        """Return a JSON request and its arrays; large ones are decoded in a thread."""

        def read() -> tuple[PredictRequest, dict[str, Any]]:
            fields = read_fields(PredictRequest, parse_json(body))
            self._state.check_model(fields.model)
            arrays = {name: self._reader.read(name, v) for name, v in fields.inputs.items()}
            return fields, arrays

        is_small = len(body) <= _DECODED_AT_ONCE
        fields, arrays = read() if is_small else await asyncio.to_thread(read)
        self._metrics.count_unknown(fields.unknown)
        return fields, arrays

    def _output_names(self, fields: PredictRequest) -> tuple[str, ...]:
        known = self._predictor.outputs
        unknown = [name for name in fields.outputs or () if name not in known]
        if unknown:
            raise bad_request(
                f"outputs: the model has no output {unknown[0][:100]!r}; it has {', '.join(known)}",
                "outputs",
            )
        return tuple(fields.outputs or known)

    def _body(self, outputs: Batch, names: tuple[str, ...], encoding: str) -> bytes:
        values: dict[str, Any] = {}
        for name in names:
            array = outputs[name]
            if encoding == "npy":
                values[name] = {"npy": encode_npy(array)}
            elif array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ApiError(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    f"the output {name!r} holds NaN or infinity, which JSON has no number for: "
                    'send "encoding": "npy"',
                    code="non_finite_output",
                )
            else:
                values[name] = array.tolist()
        return encode_json({"model": self._state.names[0], "outputs": values})
