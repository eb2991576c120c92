"""Records that hold a conversation: the forms of OpenAI, ShareGPT, LLaVA, LLaMA-Factory, Alpaca."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from calibration.sources.conversations.conversation import Conversation, Message
from calibration.sources.conversations.image_references import RecordImages, image_part
from calibration.sources.conversations.messages import check_keys, parse_message
from calibration.sources.records.record import (
    DataRecord,
    RecordError,
    checked_text,
    json_type,
)

MESSAGE_KEYS = ("messages", "conversations", "conversation")
"""Keys of a list of messages."""
INSTRUCTION = "instruction"
"""Key that marks a record in Alpaca's form."""
FORM_KEYS = (*MESSAGE_KEYS, INSTRUCTION)
_SHARED_KEYS = ("system", "image", "images")


def parse_conversation(
    record: DataRecord, key: str | None = None, ignored: Collection[str] = ()
) -> Conversation:
    """Return the conversation of a record.

    Args:
        record: a record of a file; paths of images are relative to the file's folder.
        key: key of the list of messages; by default the only one of ``FORM_KEYS`` that it has.
        ignored: keys beside metadata that may be there and are not read.

    Raises:
        RecordError: the record has no such form, or something in it would be lost.
        UnknownKeysError: the record has keys beside its form.
    """
    fields = record.fields
    key = key or _form_key(fields)
    images = RecordImages(_images(record))
    if key == INSTRUCTION:
        check_keys(fields, {key, "input", "output", "history", *_SHARED_KEYS}, ignored)
        items = _alpaca_messages(fields)
    else:
        check_keys(fields, {key, *_SHARED_KEYS}, ignored)
        items = fields[key]
    if not isinstance(items, list):
        raise RecordError(f"{key!r} is {json_type(items)}, not a list of messages")
    if not items:
        raise RecordError(f"no messages: {key!r} is empty")
    messages = [*_system_message(fields, images, record)]
    for index, item in enumerate(items):
        try:
            messages.append(parse_message(item, record.file.parent, images))
        except RecordError as error:
            raise RecordError(f"{key}[{index}]: {error}") from error
    if sum(message.role == "system" for message in messages[:2]) > 1:
        raise RecordError("has two system messages")
    images.check_counts()
    if not any(part for message in messages for part in message.parts):
        raise RecordError("the messages have no content")
    return Conversation(record.where, tuple(messages))


def _form_key(fields: Mapping[str, Any]) -> str:
    found = [key for key in FORM_KEYS if fields.get(key) is not None]
    if not found:
        keys = ", ".join(map(repr, fields)) or "none"
        raise RecordError(f"no conversation: expected the key 'messages', found the keys {keys}")
    if len(found) > 1:
        raise RecordError(f"two conversations: has {' and '.join(map(repr, found))}")
    return found[0]


def _images(record: DataRecord) -> list[Any]:
    image, images = record.fields.get("image"), record.fields.get("images")
    if image and images:
        raise RecordError("has both 'image' and 'images'")
    references = image or images or []
    if not isinstance(references, list):
        references = [references]
    return [image_part(reference, record.file.parent) for reference in references]


def _system_message(
    fields: Mapping[str, Any], images: RecordImages, record: DataRecord
) -> list[Message]:
    if not fields.get("system"):
        return []
    value = {"role": "system", "content": checked_text(fields["system"], "'system'")}
    return [parse_message(value, record.file.parent, images)]


def _alpaca_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of ``{"instruction", "input", "output", "history"}``.

    The input follows the instruction on a line of its own.
    """
    turns: list[tuple[Any, Any]] = []
    for turn in fields.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RecordError("'history' is not a list of pairs of a question and an answer")
        turns.append((turn[0], turn[1]))
    question = checked_text(fields[INSTRUCTION], f"{INSTRUCTION!r}")
    if fields.get("input"):
        question += "\n" + checked_text(fields["input"], "'input'")
    turns.append((question, fields.get("output")))
    messages = []
    for user, assistant in turns:
        messages.append({"role": "user", "content": user})
        if assistant is not None:
            messages.append({"role": "assistant", "content": assistant})
    return messages
