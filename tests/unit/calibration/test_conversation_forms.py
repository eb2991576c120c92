"""Conversations: every form gives the same messages, and nothing in a record is lost."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from calibration.sources.conversations.conversation import (
    Conversation,
    ImagePart,
    Message,
    TextPart,
)
from calibration.sources.conversations.forms import parse_conversation
from calibration.sources.records.record import DataRecord, RecordError

PICTURE = b"\x89PNG bytes of a picture"
ANSWER = Message("assistant", (TextPart("A cat."),))
QUESTION = "What is this?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a b.png").write_bytes(PICTURE)
    (tmp_path / "c.png").write_bytes(PICTURE)
    return tmp_path


def parse(folder: Path, fields: dict[str, Any], **options: Any) -> Conversation:
    return parse_conversation(DataRecord(folder / "talks.jsonl", ":1", fields), **options)


def content_forms(folder: Path) -> dict[str, Any]:
    """Return the forms of a record about the picture ``a b.png``, and the question and answer."""
    file = str((folder / "a b.png").resolve())
    text = {"type": "text", "text": QUESTION}
    answer = {"role": "assistant", "content": "A cat."}

    def messages(*parts: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}, answer]}

    def chat(question: str, **more: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
        return {"conversations": turns, **more}

    pair = [{"role": "user", "content": f"<image>{QUESTION}"}, answer]
    return {
        "transformers path": messages({"type": "image", "path": "a b.png"}, text),
        "transformers url": messages({"type": "image", "url": file}, text),
        "transformers image": messages({"type": "image", "image": "a b.png"}, text),
        "Qwen-VL": messages({"type": "image", "image": f"file://{file.replace(' ', '%20')}"}, text),
        "Qwen-VL without types": messages({"image": "a b.png"}, {"text": QUESTION}),
        "Qwen-VL tags": chat(f"<img>a b.png</img>\n{QUESTION}"),
        "OpenAI": messages({"type": "image_url", "image_url": {"url": "a b.png"}}, text),
        "OpenAI detail": messages(
            {"type": "image_url", "image_url": {"url": "a b.png", "detail": "low"}}, text
        ),
        "OpenAI responses": messages(
            {"type": "input_image", "image_url": "a b.png"},
            {"type": "input_text", "text": QUESTION},
        ),
        "TRL": messages({"type": "image"}, text) | {"images": ["a b.png"]},
        "LLaMA-Factory": {"messages": pair, "images": ["a b.png"]},
        "LLaMA-Factory ShareGPT": chat(f"<image>{QUESTION}", images=["a b.png"]),
        "ShareGPT with metadata": chat(
            f"<image>\n{QUESTION}", image="a b.png", id="7", source="x", score=0.5, tools=None
        ),
        "LLaVA": chat(f"<image>\n{QUESTION}", image="a b.png", id="0"),
        "Hugging Face images": chat(f"<image>\n{QUESTION}", images=[{"path": "a b.png"}]),
        "Alpaca": {"instruction": f"<image>{QUESTION}", "output": "A cat.", "images": ["a b.png"]},
    }


def test_every_form_gives_the_same_conversation(folder: Path) -> None:
    picture = ImagePart((folder / "a b.png").resolve())
    expected = (Message("user", (picture, TextPart(QUESTION))), ANSWER)
    for name, fields in content_forms(folder).items():
        assert parse(folder, fields).messages == expected, name


def test_a_picture_in_the_record_is_its_bytes(folder: Path) -> None:
    encoded = base64.b64encode(PICTURE).decode()
    parts: tuple[Any, ...] = (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": f"data:image/png;base64,{encoded}"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": encoded},
        },
        {"type": "image", "image": {"bytes": PICTURE, "path": None}},
    )
    for part in parts:
        (message,) = parse(folder, {"messages": [{"role": "user", "content": [part]}]}).messages
        assert message.parts == (ImagePart(PICTURE),)


def test_images_are_in_the_order_of_their_placeholders(folder: Path) -> None:
    fields = {
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\nCompare,\nplease"},
            {"from": "gpt", "value": "Done"},
            {"from": "human", "value": "and this?\n<image>"},
        ],
        "images": ["c.png", "a b.png", "c.png"],
    }
    conversation = parse(folder, fields)
    first, second = (folder / "c.png").resolve(), (folder / "a b.png").resolve()
    assert conversation.images == [first, second, first]
    assert conversation.messages[0].parts[2:] == (TextPart("Compare,\nplease"),)
    assert conversation.messages[2].parts == (TextPart("and this?"), ImagePart(first))
    assert not conversation.is_answered


def test_texts_alone_are_a_conversation_and_stay_as_they_are(folder: Path) -> None:
    text = " \u2028 a\r\nb  "
    forms: tuple[dict[str, Any], ...] = (
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": text},
                {"role": "assistant", "content": "B"},
            ]
        },
        {
            "system": "S",
            "conversations": [{"from": "Human", "value": text}, {"from": "gpt", "value": "B"}],
        },
        {
            "conversation": [
                {"role": "developer", "content": [{"type": "text", "text": "S"}]},
                {"role": "user", "content": text, "name": None},
                {"role": "model", "content": "B"},
            ],
            "images": [],
        },
        {"system": "S", "instruction": text, "input": "", "output": "B", "history": []},
    )
    expected = tuple(
        Message(role, (TextPart(content),))
        for role, content in (("system", "S"), ("user", text), ("assistant", "B"))
    )
    for fields in forms:
        assert parse(folder, fields).messages == expected


def test_alpaca_puts_its_input_below_the_instruction_and_its_history_first(folder: Path) -> None:
    fields = {"instruction": "Add", "input": "1 2", "output": "3", "history": [["a", "b"]]}
    texts = [(message.role, message.text) for message in parse(folder, fields).messages]
    assert texts == [("user", "a"), ("assistant", "b"), ("user", "Add\n1 2"), ("assistant", "3")]


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text": "x", "title": "y"},
            "expected the key 'messages', found the keys 'text', 'title'",
        ),
        ({"messages": [], "conversations": []}, "two conversations"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "'messages' is a string"),
        ({"messages": ["hello"]}, r"messages\[0\]: expected a message, found a string"),
        (user(None), r"messages\[0\]: 'content' is null"),
        (user(7), "'content' is the number 7"),
        (user([{"type": "text", "text": None}]), "'text' is null, not text"),
        (user("x", weight="y"), r"messages\[0\]: unknown key 'weight'"),
        (user("x", tool_calls=[{"id": "1"}]), "'tool_calls' holds tool calls"),
        (user("x") | {"tools": [{"name": "f"}]}, "'tools' holds tool definitions"),
        (user("x") | {"videos": ["a.mp4"]}, "'videos' holds videos"),
        (user("x") | {"picture": "a.png", "caption": "c"}, "unknown keys 'picture', 'caption'"),
        (user("x") | {"image_id": "a.png"}, "unknown key 'image_id'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "belongs to tool calls"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
        ({"messages": [{"role": None, "content": "x"}]}, "unknown role null"),
        ({"messages": [{"content": "x"}]}, "has no 'role' or 'from'"),
        (user("x", value="y"), "has both 'content' and 'value'"),
        (user([{"type": "video", "video": "a.mp4"}]), "type 'video' is not read"),
        (user([{"type": "input_audio", "input_audio": {}}]), "type 'input_audio' is not read"),
        (user([{"type": "image", "path": "a b.png", "max_pixels": 9}]), "unknown key 'max_pixels'"),
        (user([{"type": "image", "path": "c.png", "url": "c.png"}]), "by 'path' and 'url'"),
        (user([{"type": "image", "path": "none.png"}]), "there is no image .*none.png"),
        (user([{"type": "image", "path": "."}]), "is a folder"),
        (user([{"type": "image", "url": "https://x.org/a.png"}]), "nothing is downloaded"),
        (user([{"type": "image", "base64": "***"}]), "is not base64"),
        (user([{"type": "image", "path": "Ab0+" * 2000}]), "needs data:image/png;base64"),
        (user([{"type": "image", "source": {"type": "url"}}]), "an image has no 'url'"),
        (user([{"type": "image_url", "image_url": {"detail": "low"}}]), "an image has no 'url'"),
        (user([{"type": "image"}]), "1 placeholders .* but 0 images"),
        (user("<image> x"), "1 placeholders .* but 0 images"),
        (user("x") | {"images": ["c.png"]}, "0 placeholders .* but 1 images"),
        (user("<image>") | {"images": ["c.png", "c.png"]}, "1 placeholders .* but 2 images"),
        (user("<image>") | {"image": "c.png", "images": ["c.png"]}, "both 'image' and 'images'"),
        (user("<image>") | {"images": [3]}, "an image is the number 3"),
        (user("half \ud800 pair"), r"holds \\ud800, half of a surrogate pair"),
        ({"instruction": None, "messages": None}, "expected the key 'messages'"),
        ({"instruction": "x", "history": ["a"]}, "'history' is not a list of pairs"),
    ],
)
def test_what_would_be_lost_or_misread_is_an_error(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        parse(folder, fields)


def test_keys_can_be_ignored_by_name(folder: Path) -> None:
    fields = user("x") | {"caption": "c"}
    assert parse(folder, fields, ignored=["caption"]).messages[0].text == "x"
