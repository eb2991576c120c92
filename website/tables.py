"""Markdown tables, and text inside of them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")
_SPECIAL = re.compile(r"([*\[\]]|(?<!\w)_|_(?!\w))")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def escaped(text: str) -> str:
    """Return text as Markdown that is shown as it is; pieces in backticks stay code."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else _escaped_prose(part) for part in parts)


def _escaped_prose(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", html.escape(text, quote=False))


def code(text: str) -> str:
    """Return text in code font."""
    return f"`{text}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
