"""What every request passes first: the key, and the phase of the server."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compressor.errors import CompressError
from compressor.serving.api_errors import ApiError, from_compress_error
from compressor.serving.event_stream import ClientLeftError, encode_json
from compressor.serving.metrics import Metrics
from compressor.serving.state import ServerState

_OPEN_PATHS = frozenset({"/health", "/"})
"""Paths that need no key and are answered while the server loads."""
_CLIENT_LEFT = 499


class Guard:
    """Checks requests, and turns every error into OpenAI's JSON."""

    def __init__(
        self,
        app: ASGIApp,
        state: ServerState,
        metrics: Metrics,
        api_keys: Sequence[str],
    ) -> None:
        self._app, self._state, self._metrics = app, state, metrics
        self._api_keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # the router raises its errors, instead of answering with plain text
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._state.in_flight += 1
        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except ClientLeftError:
            status = status or _CLIENT_LEFT
        except Exception as error:
            if status:
                raise
            api_error = _api_error(error, scope)
            self._metrics.rejected.labels(api_error.code or "").inc()
            await _send_error(api_error, sending)
        finally:
            self._state.in_flight -= 1
            self._metrics.requests.labels(_route(scope), str(status)).inc()

    def _check(self, scope: Scope) -> None:
        """Check the key, and that the server is ready.

        Raises:
            ApiError: 401 or 503.
        """
        if scope["path"] in _OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        if self._api_keys and not self._has_api_key(headers.get(b"authorization", b"")):
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "no valid key: send the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if scope["path"] != "/metrics":
            self._state.check_ready()

    def _has_api_key(self, header: bytes) -> bool:
        scheme, _, key = header.partition(b" ")
        # Every key is compared, each in constant time: the time tells nothing about any.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._api_keys]
        return scheme.lower() == b"bearer" and any(matches)


def _api_error(error: Exception, scope: Scope) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):  # of the router: no such path, or not with this method
        is_unknown = error.status_code == HTTPStatus.NOT_FOUND
        return ApiError(
            error.status_code,
            f"this server does not answer {scope['method']} {scope['path'][:100]}: GET / lists "
            "its routes",
            code="unknown_url" if is_unknown else "unsupported_method",
            headers=error.headers,
        )
    if isinstance(error, CompressError):
        return from_compress_error(error)
    from compressor.artifacts.causes import describe_unexpected

    return from_compress_error(describe_unexpected(error))


async def _send_error(error: ApiError, send: Any) -> None:
    headers = {"content-type": "application/json", **error.headers}
    await send(
        {
            "type": "http.response.start",
            "status": int(error.status),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": encode_json(error.payload())})


def _route(scope: Scope) -> str:
    """Return the route of a request; others share one name, since clients choose paths."""
    path: str = scope["path"]
    if "endpoint" not in scope:
        return "other"
    return "/v1/models/{name}" if path.startswith("/v1/models/") else path
