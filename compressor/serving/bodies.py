"""Read the body of a request within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pydantic_core
from starlette.requests import ClientDisconnect, Request

from compressor.serving.api_errors import ApiError, bad_request, overloaded
from compressor.serving.event_stream import ClientLeftError
from compressor.serving.limits import ServerLimits

JSON = "application/json"
_PARSED_AT_ONCE = 1 << 16
"""Bytes of JSON that are parsed on the event loop; larger ones are parsed in a thread."""


class BodyReader:
    """Reads bodies, and bounds the bytes of all requests that are being prepared."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._held_bytes = 0

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """Yield the JSON object of a request; its bytes count against the bound within the block.

        Raises:
            ApiError: 400 for what is no JSON object; as ``content``.
        """
        async with self.content(request, (JSON,)) as (_, body):
            if len(body) <= _PARSED_AT_ONCE:
                value = parse_json(body)
            else:
                value = await asyncio.to_thread(parse_json, body)
            del body
            yield value

    @asynccontextmanager
    async def content(
        self, request: Request, types: Sequence[str]
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Yield type and bytes of a request, which count against the bound within the block.

        Args:
            request: the request.
            types: content types that are read; the first is assumed where none is stated.

        Raises:
            ApiError: 408 for a body that does not arrive, 413 for one that is too large, 415 for
                another type, 429 where too many are being read.
        """
        type_ = _checked_type(request, types)
        length = _declared_length(request)
        if length is not None and length > self._limits.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    async for chunk in request.stream():
                        body += chunk
                        self._hold(len(chunk))
                        if len(body) > self._limits.max_body_bytes:
                            raise self._too_large()
            except TimeoutError as error:
                raise ApiError(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the request did not arrive within {self._limits.body_seconds:g} seconds",
                    code="request_timeout",
                    headers={"connection": "close"},
                ) from error
            except ClientDisconnect as error:
                raise ClientLeftError from error
            yield type_, bytes(body)
        finally:
            self._held_bytes -= len(body)

    def _hold(self, count: int) -> None:
        self._held_bytes += count
        if self._held_bytes > self._limits.max_bodies_bytes:
            raise overloaded("too many large requests are being read at once", 1)

    def _too_large(self) -> ApiError:
        return ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request is larger than {self._limits.max_body_bytes} bytes: send smaller images, "
            "or start the server with a larger --max-body-mb",
            code="request_too_large",
        )


def _checked_type(request: Request, types: Sequence[str]) -> str:
    header = request.headers.get("content-type", types[0])
    type_ = header.partition(";")[0].strip().lower()
    if type_ not in types:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content type is {header!r}: send {' or '.join(types)}",
            code="unsupported_media_type",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content encoding is {encoding!r}: send the body uncompressed",
            code="unsupported_media_type",
        )
    return type_


def _declared_length(request: Request) -> int | None:
    header = request.headers.get("content-length", "")
    return int(header) if header.isdecimal() else None


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; NaN, invalid UTF-8 and deep nesting are refused."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise bad_request(f"the body is no valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request("the body is JSON, but no object", code="invalid_json")
    return value
