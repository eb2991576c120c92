"""Errors as HTTP clients see them: a status, and OpenAI's object with message, type and code."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from compressor.errors import CompressError, ModelError, ResourceError, UsageError
from compressor.errors import DataError as UserDataError

_INVALID = "invalid_request_error"
_RETRY_AFTER = "retry-after"


class ApiError(Exception):
    """A refused request.

    Attributes:
        status: HTTP status code.
        message: what is wrong, and what to do.
        kind: the field ``type`` of OpenAI's error object.
        param: the field of the request at fault, if it is one.
        code: a name that programs compare.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = _kind_of(status)
        self.headers = dict(headers or {})

    def payload(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that cannot be answered as it is."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code or "invalid_value")


def unsupported(param: str, message: str) -> ApiError:
    """Return the error for a known field that this server does not support."""
    return bad_request(message, param, "unsupported_parameter")


def overloaded(message: str, retry_after_seconds: float) -> ApiError:
    """Return the error for a request beyond what may wait."""
    headers = {_RETRY_AFTER: str(max(1, round(retry_after_seconds)))}
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS, message, code="rate_limit_exceeded", headers=headers
    )


def unavailable(message: str, retry_after_seconds: float, code: str) -> ApiError:
    """Return the error while the server loads or drains."""
    headers = {_RETRY_AFTER: str(max(1, round(retry_after_seconds)))}
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, headers=headers)


def from_compress_error(error: CompressError) -> ApiError:
    """Return the error for one of the project's, raised while a request is prepared or run."""
    message = str(error)
    if isinstance(error, UserDataError | UsageError) and not isinstance(error, ModelError):
        return bad_request(message)
    if isinstance(error, ResourceError):
        return unavailable(message, 1, "out_of_memory")
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="internal_error")


def _kind_of(status: int) -> str:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else _INVALID)
