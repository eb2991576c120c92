"""HTTP connections with deadlines for headers and for readers, and a bound on their number."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from compressor.serving.limits import ServerLimits


def connection_class(limits: ServerLimits) -> type[asyncio.Protocol]:
    """Return the protocol of a connection that ends where its client is too slow.

    uvicorn's own has a timeout between requests alone: a client that sends one byte of a header
    each minute, or never reads its answer, would hold its connection for ever.
    """

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _read_deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
            else:
                self._start_deadline()

        def data_received(self, data: bytes) -> None:
            before: Any = self.cycle
            super().data_received(data)
            if self.cycle is not before and not self.cycle.response_complete:
                self._end_deadline()
            elif self.cycle is None or self.cycle.response_complete:
                self._start_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_deadline()
            self._end_read_deadline()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._read_deadline = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._end_read_deadline()
            super().resume_writing()

        def _end_read_deadline(self) -> None:
            if self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def _start_deadline(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _end_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Connection
