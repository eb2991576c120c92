"""Conversations with images in JSONL files, in the format of transformers' chat templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.sources.files import read_text

Message = dict[str, Any]
_FORMAT = (
    '{"messages": [{"role": …, "content": "…" or [{"type": "image", "path": …}, '
    '{"type": "text", "text": …}]}, …]}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation: a line of a file."""

    where: str
    """File and line, for messages."""
    messages: tuple[Message, ...]
    """Messages whose content is a list of parts; the ``path`` of an image is absolute."""

    @property
    def images(self) -> list[Path]:
        """The files of the images, in order."""
        return [
            Path(part["path"])
            for message in self.messages
            for part in message["content"]
            if part["type"] == "image"
        ]

    @property
    def is_answered(self) -> bool:
        """True if the last message is the assistant's."""
        return bool(self.messages[-1]["role"] == "assistant")


def read_conversations(file: Path) -> tuple[list[Conversation], list[str]]:
    """Return the conversations of a file, and all problems with it.

    Paths of images are relative to the file's folder.

    Raises:
        DataError: the file is not UTF-8.
    """
    conversations, problems = [], []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        where = f"{file}:{number}"
        try:
            messages = tuple(
                _parse_message(message, file.parent) for message in json.loads(line)["messages"]
            )
        except (ValueError, KeyError, TypeError):
            problems.append(f"{where}: expected {_FORMAT}")
            continue
        if not messages:
            problems.append(f"{where}: no messages")
            continue
        conversation = Conversation(where, messages)
        problems += [
            f"{where}: there is no image {image}"
            for image in conversation.images
            if not image.is_file()
        ]
        conversations.append(conversation)
    return conversations, problems


def _parse_message(message: Any, base: Path) -> Message:
    role, content = message["role"], message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": str(role), "content": [_parse_part(part, base) for part in parts]}


def _parse_part(part: Any, base: Path) -> dict[str, str]:
    if part["type"] == "image":
        return {"type": "image", "path": str((base / part["path"]).resolve())}
    if part["type"] != "text" or not isinstance(part["text"], str):
        raise ValueError("neither text nor image")
    return {"type": "text", "text": part["text"]}
