"""Separate the thinking in front of an answer from the answer, while it is generated."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def held_back(text: str, marker: str) -> int:
    """Return the length of the longest end of a text that may begin a marker."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


class ReasoningSplitter:
    """Splits pieces of text into thinking and content.

    Thinking stands in front, between ``<think>`` and ``</think>``; the white space around the tags
    belongs to neither.
    """

    def __init__(self, *, is_open: bool) -> None:
        """Create a splitter.

        Args:
            is_open: True if the prompt ends behind an opening tag.
        """
        self._state = "inside" if is_open else "before"
        self._pending, self._has_thought = "", False

    def add(self, text: str) -> tuple[str, str]:
        """Return the thinking and the content that a new piece completes."""
        self._pending += text
        thinking = ""
        if self._state == "before":
            self._leave_begin()
        if self._state == "inside":
            thinking = self._take_thinking()
        return thinking, self._take_content() if self._state in {"behind", "content"} else ""

    def end(self) -> tuple[str, str]:
        """Return what was held back, at the end of the answer."""
        pending, self._pending = self._pending, ""
        if self._state == "inside":
            return pending, ""
        return "", pending.lstrip() if self._state == "behind" else pending

    def _leave_begin(self) -> None:
        """Decide if the answer begins with thinking, as soon as its first characters show it."""
        begin = self._pending.lstrip()
        if begin.startswith(OPEN):
            self._state, self._pending = "inside", begin[len(OPEN) :]
        elif not OPEN.startswith(begin):
            self._state = "content"

    def _take_thinking(self) -> str:
        if not self._has_thought:
            self._pending = self._pending.lstrip()
            self._has_thought = bool(self._pending)
        before, close, after = self._pending.partition(CLOSE)
        if close:
            self._state, self._pending = "behind", after
            return before.rstrip()
        safe = before[: len(before) - held_back(before, CLOSE)].rstrip()
        self._pending = self._pending[len(safe) :]
        return safe

    def _take_content(self) -> str:
        if self._state == "behind":
            self._pending = self._pending.lstrip()
            if self._pending:
                self._state = "content"
        content, self._pending = self._pending, ""
        return content
