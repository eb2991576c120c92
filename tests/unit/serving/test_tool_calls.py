"""Calls in answers, in every form that models write, and however the text is cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.serving.reasoning import ReasoningSplitter
from compressor.serving.tool_calls import ToolCall, ToolCallParser

SCHEMAS = {"look": {"properties": {"where": {"type": "string"}, "far": {"type": "boolean"}}}}
CALL = ToolCall("look", '{"where": "10", "far": true}')
WHOLE = [
    '{"name": "look", "arguments": {"where": "10", "far": true}}',
    '<|python_tag|>{"name": "look", "parameters": {"where": "10", "far": true}}',
    'look\n{"where": "10", "far": true}',
]
MARKED = [
    '<tool_call>\n{"name": "look", "arguments": {"where": "10", "far": true}}\n</tool_call>',
    "<tool_call>look\n<arg_key>where</arg_key>\n<arg_value>10</arg_value>\n"
    "<arg_key>far</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
    r'<tool_call>{"name": "look", "arguments": "{\"where\": \"10\", \"far\": true}"}'
    "</tool_call>",
]


def parse(text: str, cuts: list[int]) -> tuple[str, list[ToolCall]]:
    parser = ToolCallParser(SCHEMAS, SCHEMAS)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    content, calls = "", []
    for start, end in itertools.pairwise(places):
        piece, found = parser.add(text[start:end])
        content, calls = content + piece, calls + found
    piece, found = parser.end()
    return content + piece, calls + found


CUTS = st.lists(st.integers(0, 300), max_size=12)


@pytest.mark.parametrize("text", [*WHOLE, *MARKED])
@given(cuts=CUTS)
def test_a_call_is_found_however_it_is_cut(text: str, cuts: list[int]) -> None:
    assert parse(text, cuts) == ("", [CALL])


@pytest.mark.parametrize("text", MARKED)
@given(cuts=CUTS)
def test_text_around_calls_is_kept(text: str, cuts: list[int]) -> None:
    content, calls = parse(f"I look.{text}{text}", cuts)
    assert content == "I look."
    assert calls == [CALL, CALL]


@pytest.mark.parametrize(
    "text",
    [
        "just text",
        "look at this",
        "look\nthere",
        '{"colour": "red"}',
        '{"name": "other", "arguments": {}}',
        '{"name": ["look"], "arguments": {}}',
        "<tool_call>nonsense</tool_call> behind",
        "<tool_call>never closed",
        "a < b <tool",
        "",
    ],
)
@given(cuts=CUTS)
def test_what_is_no_call_stays_text(text: str, cuts: list[int]) -> None:
    assert parse(text, cuts) == (text, [])


def test_several_calls_of_llama_are_separated_by_semicolons() -> None:
    assert parse(f"{WHOLE[0]}; {WHOLE[0]}", [])[1] == [CALL, CALL]


def test_text_is_passed_on_before_the_answer_ends() -> None:
    parser = ToolCallParser(SCHEMAS, SCHEMAS)
    assert parser.add("Some text and")[0] == "Some text and"


@given(cuts=CUTS)
def test_thinking_is_split_from_content_however_it_is_cut(cuts: list[int]) -> None:
    for is_open, text in (
        (False, "<think>\na < b\n</think>\n\nyes </think>"),
        (True, "a < b</think>yes </think>"),
    ):
        splitter = ReasoningSplitter(is_open=is_open)
        places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
        pieces = [splitter.add(text[a:b]) for a, b in itertools.pairwise(places)]
        pieces.append(splitter.end())
        thinking, content = ("".join(part) for part in zip(*pieces, strict=True))
        assert thinking == "a < b"
        assert content == "yes </think>"


def test_an_answer_without_thinking_is_content() -> None:
    splitter = ReasoningSplitter(is_open=False)
    assert splitter.add("<") == ("", "")
    assert splitter.add("b> x") == ("", "<b> x")


def test_arguments_are_one_json_object() -> None:
    assert json.loads(CALL.arguments) == {"where": "10", "far": True}
