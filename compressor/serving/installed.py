"""Libraries that a server needs beyond those of the other commands."""

from __future__ import annotations

from importlib.util import find_spec

from compressor.errors import MissingExtraError

_LIBRARIES = ("starlette", "uvicorn", "prometheus_client", "llguidance")


def require_server_libraries() -> None:
    """Check that the libraries of the extra ``serve`` are installed.

    Raises:
        MissingExtraError: one of them is not.
    """
    for library in _LIBRARIES:
        if find_spec(library) is None:
            raise MissingExtraError(library.replace("_", "-"), "serve", "serve")
