"""Text of one answer, piece by piece, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.generation.detokenization import open_detokenizer


class AnswerText:
    """The text of one answer; its pieces end in no half character and in no begin of a stop text.

    Attributes:
        stopped: the stop text that ended the answer; None before.
    """

    def __init__(
        self, tokenizer: Any, *, stop: Sequence[str] = (), keep_special_tokens: bool = False
    ) -> None:
        """Start an answer.

        Args:
            tokenizer: a tokenizer of transformers.
            stop: texts that end the answer. The first one that is complete ends it; it is no part
                of the text.
            keep_special_tokens: True to have special tokens in the text.
        """
        self._detokenizer = open_detokenizer(tokenizer, keep_special_tokens=keep_special_tokens)
        self._stop = [text for text in stop if text]
        self._held = ""
        self._pieces: list[str] = []
        self._sent_characters = 0
        self.stopped: str | None = None

    @property
    def text(self) -> str:
        """All pieces together."""
        return "".join(self._pieces)

    @property
    def next_offset(self) -> int:
        """Characters of the answer before the next token, those that are held back included."""
        return self._sent_characters + len(self._held) + self._detokenizer.held_characters

    def add(self, token: int) -> str:
        """Return the text that can be sent after one more token; often none."""
        return self._advance(self._detokenizer.add(token), final=False)

    def finish(self) -> str:
        """Return the text that was held back, at the end of the answer.

        An incomplete character at the end is left out.
        """
        return self._advance(self._detokenizer.finish(), final=True)

    def _advance(self, new: str, *, final: bool) -> str:
        if self.stopped is not None or not (new or final):
            return ""
        text = self._held + new
        if ends := [(text.find(stop) + len(stop), stop) for stop in self._stop if stop in text]:
            end, self.stopped = min(ends, key=lambda end: (end[0], -len(end[1])))
            piece, self._held = text[: end - len(self.stopped)], ""
        else:
            held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
            piece, self._held = text[: len(text) - held], text[len(text) - held :]
        if piece:
            self._pieces.append(piece)
            self._sent_characters += len(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop text begins with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
