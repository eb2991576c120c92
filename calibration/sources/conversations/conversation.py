"""A conversation: messages of texts and images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message."""

    source: Path | bytes
    """An absolute path, or the bytes of an image file that the record itself holds."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message: ``system``, ``user`` or ``assistant``, and its content."""

    role: str
    parts: tuple[TextPart | ImagePart, ...]

    @property
    def text(self) -> str:
        """The pieces of text, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a file."""

    where: str
    """File and place in it, for messages."""
    messages: tuple[Message, ...]

    @property
    def images(self) -> list[Path | bytes]:
        """The images, in order."""
        return [
            part.source
            for message in self.messages
            for part in message.parts
            if isinstance(part, ImagePart)
        ]

    @property
    def is_answered(self) -> bool:
        """True if the last message is the assistant's."""
        return self.messages[-1].role == ASSISTANT
