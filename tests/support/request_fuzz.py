"""Requests of random shape for the routes of a server, and the statuses that they may get."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

import httpx

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/predict")
ALLOWED = frozenset({200, 400, 404, 413, 415, 422, 429})
"""Statuses of requests that are only wrong: never 5xx."""
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e308, -5, 10**30, "", "x", "\u0000", "é🙂", "\ufffd"),
    *([], {}, [[]], [None], {"a": {"b": []}}, "data:,", _PIXEL, "none", "auto", "required"),
)
_FIELDS = (
    *("model", "messages", "prompt", "input", "inputs", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "stream", "stream_options"),
    *("logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice", "response_format"),
    *("guided_regex", "guided_json", "guided_choice", "guided_grammar", "structured_outputs"),
    *("enable_thinking", "return_reasoning", "chat_template_kwargs", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "min_tokens", "stop_token_ids", "outputs"),
    *("encoding", "encoding_format", "dimensions", "ignore_eos", "functions", "store", "zzz"),
)
_VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/predict": {"inputs": {"x": [[1, 2, 3]]}},
}


@dataclass(frozen=True)
class FuzzedRequest:
    route: str
    body: bytes
    headers: dict[str, str]


def random_request(generator: random.Random) -> FuzzedRequest:
    """Return a request: a valid one with some fields changed, or one whose bytes are broken."""
    route = generator.choice(ROUTES)
    value: Any = json.loads(json.dumps(_VALID[route]))
    for _ in range(generator.randint(0, 4)):
        change_somewhere(value, generator)
    if generator.random() < 0.1:
        value = generator.choice(_VALUES)
    body = json.dumps(value).encode()
    headers = {"content-type": "application/json"}
    kind = generator.random()
    if kind < 0.15:
        body = broken_json(body, generator)
    elif kind < 0.2:
        headers = {"content-type": generator.choice(("text/plain", "", "multipart/form-data"))}
    return FuzzedRequest(route, body, headers)


def wrong_status(client: httpx.Client, request: FuzzedRequest) -> str | None:
    """Send a request; return what is wrong with the answer, or None."""
    response = client.post(request.route, content=request.body, headers=request.headers)
    if response.status_code not in ALLOWED:
        return f"{response.status_code} {response.text[:500]} for {request}"
    if response.headers["content-type"].startswith("text/event-stream"):
        return None if "data: " in response.text else f"empty stream for {request}"
    answer = response.json()
    if (response.status_code == 200) == ("error" in answer):
        return f"{response.status_code} {answer} for {request}"
    return None


def change_somewhere(value: Any, generator: random.Random) -> None:
    """Set, delete or replace something somewhere in a JSON object."""
    place = value
    while generator.random() < 0.5:
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if v]
        inner = [v for v in inner if isinstance(v, dict | list)]
        if not inner:
            break
        place = generator.choice(inner)
    new = copy.deepcopy(generator.choice(_VALUES))
    if isinstance(place, list):
        place.append(new) if generator.random() < 0.5 else place.__setitem__(slice(0, 1), [new])
    elif place is value:
        place[generator.choice(_FIELDS)] = new
    elif place and generator.random() < 0.2:
        del place[generator.choice(list(place))]
    else:
        place[generator.choice([*place, "type", "content", "role", "text"])] = new


def broken_json(body: bytes, generator: random.Random) -> bytes:
    """Return bytes that are probably no JSON."""
    return generator.choice(
        (
            body[: generator.randrange(len(body) + 1)],
            bytes(generator.choices(range(256), k=generator.randint(0, 60))),
            body.replace(b'"', b"'", 1),
            b"[" * generator.randint(1, 5000),
            b'{"a":' * 500 + b"1" + b"}" * 500,
            body[:-1] + b',"temperature": NaN}',
            body[:-1] + b',"user": "\xff\xfe"}',
            body[:-1] + b',"user": "\\ud800"}',
            body + body,
            b"\xef\xbb\xbf" + body,
        )
    )
