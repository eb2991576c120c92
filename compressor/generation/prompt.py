"""The input that a model answers, continues, translates or transcribes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user message, or text to continue."""

    text: str
    images: tuple[Path, ...] = ()
    """Image files that the message is about; they come before the text."""
    raw: bool = False
    """Continue the text as it is, without the chat template."""
    audio: Path | None = None
    """A WAV file for the encoder of a speech model."""
    language: str | None = None
    """Language that is spoken, or translated to; by default that of the model's files."""
    task: str | None = None
    """Task of a speech model, such as ``transcribe``; by default that of the model's files."""
    adapter: Path | None = None
    """Folder of the adapter under which the model answers; None for the model alone."""
