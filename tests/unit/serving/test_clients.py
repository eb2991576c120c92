"""The clients that count: langchain, and Open-AutoGLM's phone agent with its deployment check."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import phone_agent.device_factory as devices
import pytest
from langchain_openai import ChatOpenAI
from phone_agent import PhoneAgent
from phone_agent.agent import AgentConfig
from phone_agent.model import ModelConfig

from compressor.serving.launch import RunningServer
from tests.support.served import LETTERS, screen_png, serving

ACTION = r'do\(action="Tap", element=\[[1-9][0-9]{1,2},[1-9][0-9]{1,2}\]\)'
STEPS = 4


@dataclass
class Screenshot:
    base64_data: str
    width: int = 1080
    height: int = 2400
    is_sensitive: bool = False


@dataclass
class FakePhone:
    """A phone whose every tap leads to another generated screen."""

    taps: list[tuple[int, int]] = field(default_factory=list)

    def get_screenshot(self, device_id: str | None = None, timeout: int = 10) -> Screenshot:
        return Screenshot(base64.b64encode(screen_png(len(self.taps))).decode())

    def get_current_app(self, device_id: str | None = None) -> str:
        return "Settings"

    def tap(self, x: int, y: int, device_id: Any = None, delay: Any = None) -> None:
        self.taps.append((x, y))


@pytest.fixture
def phone(monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    phone, factory = FakePhone(), devices.DeviceFactory()
    factory._module = phone
    monkeypatch.setattr(devices, "_device_factory", factory)
    return phone


def test_the_phone_agent_gets_an_answer_at_every_step(glm4v_onnx: Path, phone: FakePhone) -> None:
    with serving(glm4v_onnx, names=("autoglm-phone-9b",)) as server:
        model = ModelConfig(
            base_url=f"{server.url}/v1", max_tokens=60, extra_body={"guided_regex": ACTION}
        )
        agent = PhoneAgent(model, AgentConfig(max_steps=STEPS, lang="en", verbose=False))
        assert agent.run("open the settings") == "Max steps reached"
        answers = [m for m in agent.context if m["role"] == "assistant"]
        cached = server.metrics.value("cached_tokens_total")
        read = server.metrics.value("read_tokens_total")
    assert len(phone.taps) == len(answers) == STEPS
    assert all(0 < x < 1080 and 0 < y < 2400 for x, y in phone.taps)
    assert all(re.search(ACTION, answer["content"]) for answer in answers)
    assert cached > read, "each step after the first reads only what is new"


def test_the_deployment_check_prints_content_and_usage(client: openai.OpenAI) -> None:
    greeting = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=5,
        temperature=0.1,
        stream=False,
        logit_bias=LETTERS,
    )
    assert greeting.choices[0].message.content
    check = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [{"type": "text", "text": "open the shop"}]}],
        max_tokens=100,
        temperature=0.0,
        top_p=0.85,
        frequency_penalty=0.2,
        stream=False,
        logit_bias=LETTERS,
    )
    assert check.choices[0].message.content
    assert check.usage.completion_tokens


def test_langchain_prints_the_answer_of_the_articles_call(chat_server: RunningServer) -> None:
    chat = ChatOpenAI(
        model="tiny",
        base_url=f"{chat_server.url}/v1",
        api_key="EMPTY",
        temperature=0.5,
        max_tokens=12,
        streaming=True,
        extra_body={"enable_thinking": False, "return_reasoning": True, "logit_bias": LETTERS},
    )
    assert chat.invoke("Hello").content


def test_a_schema_is_followed_by_a_model_of_random_weights(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"enum": [1, 2, 3]}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Which?"}],
        max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    )
    value = json.loads(answer.choices[0].message.content)
    assert value["colour"] in {"red", "green"}
    assert value["count"] in {1, 2, 3}
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_call_comes_as_a_tool_call(client: openai.OpenAI, stream: bool) -> None:
    parameters = {
        "type": "object",
        "properties": {"side": {"enum": ["left", "right"]}},
        "required": ["side"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "turn", "parameters": parameters}}
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Go."}],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "turn"}},
        max_tokens=200,
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls = answer.choices[0].message.tool_calls
        reason = answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert [call.function.name for call in calls] == ["turn"]
    assert json.loads(calls[0].function.arguments)["side"] in {"left", "right"}
    assert reason == "tool_calls"


def test_a_schema_that_cannot_be_followed_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="guided_regex"):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Go."}],
            extra_body={"guided_regex": "("},
        )
