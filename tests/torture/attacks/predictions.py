"""Send predictions and embeddings of random shape to three servers, which must live on."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import httpx
import psutil

from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.serving.launch import RunningServer
from tests.support.prediction_fuzz import random_embedding, random_prediction
from tests.support.processors import write_processor
from tests.support.request_fuzz import FuzzedRequest, wrong_status
from tests.support.served import serving
from tests.support.stand_ins import SHORT, write_model
from tests.torture.registry import Attack, Case

_REQUESTS, _MOST = 100, 120
"""Requests of a case, and cases: 3,000 of each model and route."""
_WARM_UP = 48
"""Cases before the memory is measured: the largest picture grows the allocator's pools."""
_MOST_GROWTH_BYTES = 64 << 20
_IDLE_SECONDS = 10.0
_MODELS = ("phone", "classifier", "encoder")


def _cases(generator: random.Random) -> Iterator[Case]:
    with tempfile.TemporaryDirectory(prefix="torture-predictions-") as folder, ExitStack() as stack:
        servers = {name: stack.enter_context(_serving(Path(folder), name)) for name in _MODELS}
        makers: list[tuple[str, Callable[[], FuzzedRequest]]] = [
            (name, partial(random_prediction, generator, server.served.facts()["inputs"]))
            for name, server in servers.items()
        ]
        makers.append(("encoder", partial(random_embedding, generator)))
        memory: list[int] = []
        for number in range(_MOST):
            name, make = makers[number % len(makers)]
            requests = [make() for _ in range(_REQUESTS)]
            run = partial(_run, servers[name], requests, memory)
            yield f"{name} {requests[0].route} {number}", run


def _serving(folder: Path, name: str) -> AbstractContextManager[RunningServer]:
    """Return a server of one of the models, which ends with the stack."""
    path = folder / name
    if name == "encoder":
        write_model(SentenceEncoder(), "tiny", path, **SHORT)
        write_processor(path)
    else:
        family = AutoGLMPhone() if name == "phone" else ImageClassifier()
        preset = "bed-student" if name == "phone" else "tiny"
        write_model(family, preset, path)
    return serving(path, threads=2, max_wait_seconds=60.0)


def _run(
    server: RunningServer, requests: list[FuzzedRequest], memory: list[int], folder: Path
) -> str | None:
    del folder
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for request in requests:
            if problem := wrong_status(client, request):
                return problem
    end = time.monotonic() + _IDLE_SECONDS
    while server.state.in_flight or server.state.preparing:
        if time.monotonic() > end:
            return f"{server.state.in_flight} requests are in flight after the last answer"
        time.sleep(0.01)
    memory.append(psutil.Process().memory_info().rss)
    growth = memory[-1] - memory[min(_WARM_UP, len(memory) - 1)]
    return f"memory grew by {growth} bytes" if growth > _MOST_GROWTH_BYTES else None


ATTACK = Attack(
    "predictions",
    "predictions and embeddings of random shape: no wrong status, no memory is kept",
    _cases,
)
