"""The chat route, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from pathlib import Path

import httpx
import openai
import pytest

from compressor.serving.launch import RunningServer
from tests.support.served import LETTERS, data_url, screen_png, serving

HI = [{"role": "user", "content": "Hi"}]


def with_image(url: str, text: str = "what is this?") -> list:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def ask(client: openai.OpenAI, messages: list = HI, **fields: object):
    fields = {"max_tokens": 12, "temperature": 0, "logit_bias": LETTERS, **fields}
    return client.chat.completions.create(model="tiny", messages=messages, **fields)


def test_an_answer_has_text_reason_and_usage(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_has_the_same_text_as_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_a_chunk_of_usage_if_it_is_asked_for(client: openai.OpenAI) -> None:
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 12
    assert all(len(chunk.choices) == 1 for chunk in chunks)


def test_the_second_request_finds_the_prompt_in_the_cache(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "a question that was not asked before " * 3}]
    first, second = ask(client, messages), ask(client, messages)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2
    assert second.choices[0].message.content == first.choices[0].message.content


def test_max_completion_tokens_counts_before_max_tokens(client: openai.OpenAI) -> None:
    assert ask(client, max_completion_tokens=3).usage.completion_tokens == 3


def test_several_answers_are_numbered_and_differ(client: openai.OpenAI) -> None:
    answer = ask(client, n=3, temperature=2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 36


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    texts = {ask(client, temperature=1.2, seed=5).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_logprobs_cover_every_token_in_whole_answers_and_streams(client: openai.OpenAI) -> None:
    options = {"logprobs": True, "top_logprobs": 2, "logit_bias": {"70": 100}}
    whole = ask(client, **options).choices[0].logprobs.content
    streamed = [
        token
        for chunk in ask(client, stream=True, **options)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert len(whole) == len(streamed) == 12
    assert [token.bytes for token in whole] == [token.bytes for token in streamed]
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in whole)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    answer = ask(client, stop=[text[4:6]])
    assert text[4:6] not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_concurrent_streams_of_the_async_client_are_all_answered(
    chat_server: RunningServer,
) -> None:
    async def run() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{chat_server.url}/v1", api_key="x") as client:

            async def count(number: int) -> int:
                messages = [{"role": "user", "content": f"question {number}"}]
                stream = await client.chat.completions.create(
                    model="tiny",
                    messages=messages,
                    max_tokens=20,
                    temperature=0,
                    stream=True,
                    logit_bias=LETTERS,
                )
                return len([chunk async for chunk in stream])

            return await asyncio.gather(*map(count, range(8)))

    assert all(count >= 3 for count in asyncio.run(run()))


def test_an_image_of_a_whole_screen_is_answered(client: openai.OpenAI) -> None:
    answer = ask(client, with_image(data_url(screen_png())))
    text_alone = ask(client, [{"role": "user", "content": "what is this?"}])
    assert answer.usage.prompt_tokens > text_alone.usage.prompt_tokens + 4


def test_images_may_come_anywhere_in_a_conversation(client: openai.OpenAI) -> None:
    image = data_url(screen_png(1, 108, 240))
    messages = [
        {"role": "system", "content": "You see screens."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        *with_image(image),
        {"role": "assistant", "content": "A screen."},
        *with_image(data_url(screen_png(2, 108, 240)), "and this?"),
    ]
    assert ask(client, messages).choices[0].message.content


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://127.0.0.1:1/a.png", "only data: addresses are read"),
        ("file:///etc/passwd", "only data: addresses are read"),
        ("data:image/png;base64,@@@", "no valid base64"),
        ("data:image/png;base64,QUJD", "no picture"),
        ("data:image/png;base64," + data_url(screen_png())[30:5000], "no valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("nothing", "only data: addresses are read"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_by_place(
    client: openai.OpenAI, url: str, text: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=text) as caught:
        ask(client, with_image(url))
    assert "messages[0].content[0].image_url" in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client: openai.OpenAI) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(openai.BadRequestError, match="too large"):
        ask(client, with_image(data_url(png + chunk(b"IEND", b""))))


def test_a_prompt_longer_than_the_context_has_the_code_that_agents_look_at(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "x" * 9000}])
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_may_ask_for_more_tokens_than_the_context_has(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "x" * 8180}]
    answer = ask(client, messages, max_tokens=100_000)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens <= 8193


def test_an_unknown_model_is_refused_with_the_name_that_is_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="use 'tiny'"):
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_unknown_fields_are_passed_over_and_counted(
    client: openai.OpenAI, chat_server: RunningServer
) -> None:
    before = chat_server.metrics.value("unknown_fields_total", field="shiny")
    ask(client, extra_body={"shiny": True})
    assert chat_server.metrics.value("unknown_fields_total", field="shiny") == before + 1


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f"}]},
        {"modalities": ["audio"]},
        {"store": True},
        {"prompt_logprobs": 1},
        {"web_search_options": {}},
    ],
)
def test_known_fields_that_are_not_supported_are_refused_by_name(
    client: openai.OpenAI, field: dict
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body=field)
    assert caught.value.param == next(iter(field))
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"stop": [str(number) for number in range(99)]}, "stop"),
        ({"top_logprobs": 50}, "top_logprobs"),
    ],
)
def test_a_field_that_does_not_fit_is_named(http: httpx.Client, fields: dict, param: str) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 2, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_thinking_goes_to_the_template_and_stays_in_the_content(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    plain = ask(client).usage.prompt_tokens
    for body in ({"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
        answer = ask(client, extra_body=body)
        assert answer.usage.prompt_tokens == plain + len("<think>")
        assert not hasattr(answer.choices[0].message, "reasoning")


def test_thinking_is_returned_in_both_fields_if_it_is_asked_for(client: openai.OpenAI) -> None:
    fields = {"enable_thinking": True, "return_reasoning": True}
    message = ask(client, extra_body=fields).choices[0].message
    assert message.reasoning == message.reasoning_content != ""
    assert message.content == ""
    hidden = ask(client, extra_body={**fields, "return_reasoning": False}).choices[0].message
    assert hidden.content == ""
    assert not hasattr(hidden, "reasoning")


def test_tools_and_earlier_calls_are_rendered_by_the_template(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "look", "arguments": json.dumps({"where": "here"})},
    }
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    with_tools = ask(client, messages, tools=[tool])
    without = ask(client, messages, tools=[tool], tool_choice="none")
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens


def test_completions_continue_texts_and_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt=["one", "two"],
        max_tokens=5,
        temperature=0,
        logprobs=1,
        logit_bias=LETTERS,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == 5
    assert answer.usage.prompt_tokens == 6
    tokens = [4 + byte for byte in b"one"]
    fields = {"model": "tiny", "max_tokens": 5, "temperature": 0, "logit_bias": LETTERS}
    same = client.completions.create(prompt=tokens, **fields)
    assert same.choices[0].text == answer.choices[0].text
    stream = client.completions.create(prompt="one", stream=True, **fields)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_text_offsets_of_a_stream_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    fields = {
        "model": "tiny",
        "prompt": "one",
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
        "logit_bias": {str(4 + ord("a")): 50},
    }
    for stop in ([], ["a" * 9], ["aab"]):
        whole = client.completions.create(stop=stop, **fields).choices[0]
        pieces = [
            chunk.choices[0].logprobs
            for chunk in client.completions.create(stop=stop, stream=True, **fields)
            if chunk.choices[0].logprobs
        ]
        assert whole.text == "a" * 8
        assert whole.logprobs.text_offset == list(range(8))
        assert [offset for piece in pieces for offset in piece.text_offset] == list(range(8))


def test_tokens_of_one_character_share_an_offset(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt="one",
        max_tokens=7,
        logprobs=0,
        stream=True,
        extra_body={"guided_regex": "aéé中"},
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "aéé"
    offsets = [
        offset for chunk in chunks if chunk.logprobs for offset in chunk.logprobs.text_offset
    ]
    assert offsets == [0, 1, 1, 2, 2, 3, 3]


def test_metrics_count_tokens_and_times(client: openai.OpenAI, http: httpx.Client) -> None:
    ask(client)
    text = http.get("/metrics").text
    for name in (
        "time_to_first_token_seconds_count",
        "time_per_token_seconds_count",
        "running",
        "waiting",
        "cached_tokens_total",
        "read_tokens_total",
        "cancelled_total",
    ):
        assert f"\nautoglm_{name}" in text


def test_metrics_count_the_images_that_were_embedded_and_those_that_were_kept(
    glm4v_onnx: Path,
) -> None:
    messages = with_image(data_url(screen_png(3, 56, 56)))
    with serving(glm4v_onnx) as server:
        for _ in range(3):
            body = {"messages": messages, "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200
        assert server.metrics.value("images_embedded") == 1
        assert server.metrics.value("images_cached") == 2


def test_the_memory_for_keys_and_values_can_be_bounded(glm4v: Path) -> None:
    with serving(glm4v, context=64) as server:
        token_bytes = server.served._model.token_bytes
    with serving(glm4v, context=64, cache_bytes=100 * token_bytes) as server:
        assert server.served._model.budget_tokens == 100
