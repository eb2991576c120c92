"""Clients that leave, are slow, or send nonsense: the server lives on, and keeps nothing."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from compressor.serving.launch import RunningServer
from compressor.serving.limits import ServerLimits
from tests.support.request_fuzz import random_request, wrong_status
from tests.support.served import LETTERS, serving

HI = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
LONG = {**HI, "max_tokens": 8000, "ignore_eos": True, "logit_bias": LETTERS}
CHAT = "/v1/chat/completions"


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def is_idle(server: RunningServer) -> bool:
    statistics = server.served._engine.statistics()
    return statistics.running == statistics.waiting == server.state.in_flight == 0


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def raw_request(body: dict, **headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json"]
    lines += [f"content-length: {len(content)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def test_a_client_that_closes_a_stream_frees_its_row_at_once(
    chat_server: RunningServer, client: openai.OpenAI
) -> None:
    cancelled = chat_server.metrics.value("cancelled_total")
    stream = client.chat.completions.create(model="tiny", stream=True, **as_call(LONG))
    for _, _chunk in zip(range(4), stream, strict=False):
        pass
    stream.close()
    assert wait_until(lambda: is_idle(chat_server), 5)
    assert chat_server.metrics.value("cancelled_total") == cancelled + 1


def test_answers_that_end_with_a_refusal_are_not_counted_as_left(glm4v: Path) -> None:
    with serving(glm4v, rows=1, max_waiting=2) as server:
        body = {**LONG, "max_tokens": 2, "n": 8}
        refused = httpx.post(server.url + CHAT, json=body, timeout=60)
        assert refused.status_code == 429
        assert wait_until(lambda: is_idle(server))
        server.served._engine._decoder.append = None  # each answer fails
        failed = httpx.post(server.url + CHAT, json={**body, "n": 2}, timeout=60)
        assert failed.status_code == 500
        assert wait_until(lambda: is_idle(server))
        assert server.metrics.value("cancelled_total") == 0


def as_call(fields: dict) -> dict:
    extra = {"ignore_eos": fields["ignore_eos"]}
    return {**{k: v for k, v in fields.items() if k not in extra}, "extra_body": extra}


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_at_any_moment_free_their_rows(
    chat_server: RunningServer, stream: bool
) -> None:
    generator = random.Random(0)
    for number in range(24):
        connection = connect(chat_server)
        request = raw_request({**LONG, "stream": stream, "n": 1 + number % 3})
        sent = len(request) if number % 4 else generator.randrange(len(request))
        connection.sendall(request[:sent])
        if number % 3 == 0:
            time.sleep(generator.random() * 0.2)
        connection.close()
    assert wait_until(lambda: is_idle(chat_server))


def test_a_client_that_times_out_of_a_plain_request_frees_its_row(
    chat_server: RunningServer,
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(chat_server.url + CHAT, json=LONG, timeout=0.3)
    assert wait_until(lambda: is_idle(chat_server), 5)


def test_a_full_queue_answers_429_with_retry_after(glm4v: Path) -> None:
    with serving(glm4v, rows=1, max_waiting=1) as server:
        body = {**LONG, "max_tokens": 60}
        with ThreadPoolExecutor(12) as pool:
            posts = [
                pool.submit(httpx.post, server.url + CHAT, json=body, timeout=60) for _ in range(12)
            ]
            responses = [post.result() for post in posts]
        counts = {code: [r.status_code for r in responses].count(code) for code in (200, 429)}
        assert counts[200] >= 1
        assert counts[429] >= 1
        assert counts[200] + counts[429] == 12
        refused = next(r for r in responses if r.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert wait_until(lambda: is_idle(server))


def test_an_answer_beyond_its_time_is_cut(glm4v: Path) -> None:
    with serving(glm4v, limits=ServerLimits(max_seconds=0.3)) as server:
        started = time.monotonic()
        answer = httpx.post(server.url + CHAT, json=LONG, timeout=60).json()
        assert time.monotonic() - started < 20
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 8000


def test_a_body_beyond_the_limit_is_refused_as_it_arrives(glm4v: Path) -> None:
    with serving(glm4v, limits=ServerLimits(max_body_bytes=10_000)) as server:

        def chunks() -> Iterator[bytes]:
            yield b'{"messages": "'
            for _ in range(50):
                yield b"x" * 1000

        for content in (b"x" * 20_000, chunks()):
            headers = {"content-type": "application/json"}
            response = httpx.post(server.url + CHAT, content=content, headers=headers)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"
        assert httpx.post(server.url + CHAT, json={**HI, "max_tokens": 1}).status_code == 200


def test_hundreds_of_slow_clients_do_not_keep_others_out(glm4v: Path) -> None:
    limits = ServerLimits(header_seconds=1.0, body_seconds=1.0)
    with serving(glm4v, limits=limits) as server:
        begun = raw_request(HI)
        slow = [connect(server) for _ in range(300)]
        for number, connection in enumerate(slow):
            connection.sendall(begun[: 20 if number % 2 else -5])
        answer = httpx.post(server.url + CHAT, json={**HI, "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200
        assert slow[1].recv(1000) == b""
        assert b"408 Request Timeout" in slow[0].recv(1000)
        for connection in slow:
            connection.close()
        assert wait_until(lambda: is_idle(server))


def test_a_client_that_never_reads_its_stream_is_closed(glm4v: Path) -> None:
    limits = ServerLimits(send_seconds=0.5)
    with serving(glm4v, limits=limits) as server, connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {**LONG, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
        connection.sendall(raw_request(body))
        assert wait_until(lambda: not is_idle(server))
        assert wait_until(lambda: is_idle(server), 40)


def test_requests_need_the_key_if_there_is_one(glm4v: Path) -> None:
    with serving(glm4v, api_keys=("secret", "other")) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            response = httpx.post(server.url + CHAT, json=HI, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(server.url + "/metrics").status_code == 401
        assert httpx.get(server.url + "/health").status_code == 200
        with openai.OpenAI(base_url=server.url + "/v1", api_key="other") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", CHAT, 405, "unsupported_method"),
        ("POST", "/health", 405, "unsupported_method"),
        ("POST", "/v1/predict", 404, "unsupported_route"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_wrong_addresses_get_the_apis_errors(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    if code in {"unknown_url", "unsupported_method"}:
        assert f"does not answer {method} {path}: GET /" in response.json()["error"]["message"]


def test_a_server_that_drains_finishes_what_runs_and_refuses_the_rest(glm4v: Path) -> None:
    with serving(glm4v) as server:
        results: list[httpx.Response] = []

        def post() -> None:
            body = {**LONG, "max_tokens": 200}
            results.append(httpx.post(server.url + CHAT, json=body, timeout=60))

        thread = threading.Thread(target=post)
        thread.start()
        assert wait_until(lambda: not is_idle(server))
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(server.drain(60)))
        drain.start()
        assert wait_until(lambda: server.state.is_draining)
        refused = httpx.post(server.url + CHAT, json=HI)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert httpx.get(server.url + "/health").status_code == 503
        thread.join()
        drain.join()
    assert drained == [True]
    assert results[0].json()["usage"]["completion_tokens"] == 200


def test_a_stream_that_the_server_stops_ends_with_an_error_event(glm4v: Path) -> None:
    with (
        serving(glm4v) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="tiny", stream=True, **as_call(LONG))
        next(iter(stream))
        server.served.close()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)


def test_random_requests_get_no_wrong_status_and_leave_nothing(
    chat_server: RunningServer, http: httpx.Client
) -> None:
    generator = random.Random(1)
    wrong = [wrong_status(http, random_request(generator)) for _ in range(250)]
    assert [problem for problem in wrong if problem] == []
    assert wait_until(lambda: is_idle(chat_server))


def test_memory_stays_flat_over_many_requests(
    chat_server: RunningServer, http: httpx.Client
) -> None:
    def post(count: int) -> int:
        for number in range(count):
            body = {**HI, "max_tokens": 2, "stream": bool(number % 2)}
            assert http.post(CHAT, json=body).status_code == 200
        return psutil.Process().memory_info().rss

    before, after = post(40), post(60)
    assert after - before < 8 << 20


def test_many_streams_at_once_get_the_text_that_each_gets_alone(
    chat_server: RunningServer,
) -> None:
    async def run() -> None:
        url = chat_server.url + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:

            async def text(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": f"number {number}"}],
                    max_tokens=15,
                    temperature=0,
                    logit_bias=LETTERS,
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            alone = [await text(number) for number in range(6)]
            together = await asyncio.gather(*map(text, range(6)))
        assert together == alone

    asyncio.run(run())
