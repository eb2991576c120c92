"""Send requests of random shape and broken JSON to one server, which must live on."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import psutil

from compressor.serving.launch import RunningServer
from tests.support.request_fuzz import FuzzedRequest, random_request, wrong_status
from tests.support.served import serving, write_byte_glm4v
from tests.torture.registry import Attack, Case

_REQUESTS, _MOST = 100, 100
"""Requests of a case, and cases."""
_MOST_GROWTH_BYTES = 100 << 20
_IDLE_SECONDS = 10.0


def _cases(generator: random.Random) -> Iterator[Case]:
    with tempfile.TemporaryDirectory(prefix="torture-requests-") as folder:
        write_byte_glm4v(Path(folder) / "model")
        with (
            serving(Path(folder) / "model") as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            before = psutil.Process().memory_info().rss
            for number in range(_MOST):
                requests = [random_request(generator) for _ in range(_REQUESTS)]
                yield f"requests {number}", partial(_run, server, client, requests, before)


def _run(
    server: RunningServer,
    client: httpx.Client,
    requests: list[FuzzedRequest],
    before: int,
    folder: Path,
) -> str | None:
    for request in requests:
        if problem := wrong_status(client, request):
            return problem
    end = time.monotonic() + _IDLE_SECONDS
    while server.state.in_flight or server.state.preparing:
        if time.monotonic() > end:
            return f"{server.state.in_flight} requests are in flight after the last answer"
        time.sleep(0.01)
    growth = psutil.Process().memory_info().rss - before
    return f"memory grew by {growth} bytes" if growth > _MOST_GROWTH_BYTES else None


ATTACK = Attack(
    "requests",
    "requests of random shape and broken JSON: no wrong status, no memory, no row is kept",
    _cases,
)
