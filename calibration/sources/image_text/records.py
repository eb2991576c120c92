"""Conversations in a JSONL file, as transformers' chat templates take them, with the images that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import DataError

Message = dict[str, Any]
_FORM = '{"messages": [{"role": …, "content": "…" or [{"type": "image", "path": …}, {"type": "text", "text": …}]}, …]}'


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of a file."""

    where: str
    """The file and the line."""
    messages: tuple[Message, ...]
    """Contents are lists of parts; an image's ``path`` is absolute."""

    @property
    def images(self) -> list[Path]:
        """In the order in which they are shown."""
        return [Path(part["path"]) for part in _parts(self.messages) if part["type"] == "image"]

    @property
    def is_answered(self) -> bool:
        """Whether the assistant speaks last."""
        return bool(self.messages[-1]["role"] == "assistant")


def conversations(file: Path) -> tuple[list[Conversation], list[str]]:
    """What a file holds, and all that is wrong with it. Paths of images start at the file's folder.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from error
    found, problems = [], []
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        try:
            messages = tuple(
                _message(message, file.parent) for message in json.loads(line)["messages"]
            )
        except (ValueError, KeyError, TypeError):
            problems.append(f"{where}: expected {_FORM}")
            continue
        if not messages:
            problems.append(f"{where}: no messages")
            continue
        one = Conversation(where, messages)
        problems += [
            f"{where}: there is no image {image}" for image in one.images if not image.is_file()
        ]
        found.append(one)
    return found, problems


def _message(message: Any, base: Path) -> Message:
    role, content = message["role"], message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": str(role), "content": [_part(part, base) for part in parts]}


def _part(part: Any, base: Path) -> dict[str, str]:
    if part["type"] == "image":
        return {"type": "image", "path": str((base / part["path"]).resolve())}
    if part["type"] != "text" or not isinstance(part["text"], str):
        raise ValueError("neither text nor image")
    return {"type": "text", "text": part["text"]}


def _parts(messages: Sequence[Message]) -> Iterator[dict[str, str]]:
    for message in messages:
        yield from message["content"]
