"""Run a server: bind, load, answer, drain.

The event loop runs on a thread of its own. The main thread loads the model, then waits for a
signal; what Ctrl-C and SIGTERM do is decided in ``compressor.interrupts`` alone.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from compressor.errors import CompressError, UsageError
from compressor.serving.connections import connection_class
from compressor.serving.limits import ServerLimits

_BACKLOG = 1024
_KEEP_ALIVE_SECONDS = 30
_END_SECONDS = 5
"""Time for the last bytes of answers to be sent."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address on which a server listens."""

    host: str
    port: int
    """0 for any free port."""

    def bind(self) -> socket.socket:
        """Return a listening socket.

        Raises:
            UsageError: the port is in use or needs a privilege, or the host is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        except (OSError, OverflowError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> UsageError:
        place = f"{self.host}:{self.port}"
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            return UsageError(
                f"{place} is in use by another program", remedy="choose another --port, or end it"
            )
        if code == errno.EACCES:
            return UsageError(
                f"no permission to listen on {place}", remedy="choose a --port above 1023"
            )
        return UsageError(
            f"cannot listen on {place}: {getattr(error, 'strerror', None) or error}",
            remedy="name an address of this machine with --host",
        )


class HttpServer:
    """An HTTP server on a thread of its own; within the block it answers."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: ServerLimits) -> None:
        config = uvicorn.Config(
            app,
            http=connection_class(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_END_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._listener = listener
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port on which the server listens."""
        return int(self._listener.getsockname()[1])

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._listener]))
        except BaseException as error:  # noqa: BLE001 - raised again by ``wait``
            self._failure = error

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
        """Wait until the server ends, or a condition holds.

        Raises:
            CompressError: the server failed.
            KeyboardInterrupt: a signal arrived.
        """
        while self._thread.is_alive() and not until():
            self._thread.join(0.05)
        if self._failure is not None:
            raise CompressError(f"the HTTP server failed: {self._failure}") from self._failure

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(lambda: self._server.started)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_END_SECONDS + 1)
        self._listener.close()
