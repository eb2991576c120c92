"""Server-sent events to a client that may leave, or stop reading, at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

T = TypeVar("T")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"


class ClientLeftError(Exception):
    """The client closed its connection, or it was closed for it."""


class EventStream:
    """Sends JSON objects as events, then ``[DONE]``.

    Whatever ends it, ``on_end`` is called: as soon as the client leaves, not when a garbage
    collector finds the generator.
    """

    def __init__(self, events: AsyncIterator[Any], on_end: Callable[[], None]) -> None:
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events; see the class."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(raise_when_left(receive))
                await self._send_all(send)
                watcher.cancel()
        except* ClientLeftError:
            pass
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async for event in self._events:
            await _send_body(send, encode_event(event), more=True)
        await _send_body(send, _DONE, more=False)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def encode_event(value: Any) -> bytes:
    """Return a JSON value as one event."""
    return b"data: " + encode_json(value) + b"\n\n"


def encode_json(value: Any) -> bytes:
    """Return JSON in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


async def raise_when_left(receive: Receive) -> None:
    """Wait until the client leaves; the body must have been read.

    Raises:
        ClientLeftError: always, in the end.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientLeftError


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine, which is cancelled if the client leaves before.

    Raises:
        ClientLeftError: the client left.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(raise_when_left(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeftError
    finally:
        for pending in (task, watcher):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending
