r"""Text of foreign files for a terminal or a log: no character that either of them would obey.

Control characters, among them the escape character that starts sequences of colours, titles and
cursor movements, and marks that reorder the text around them, are written as ``\x1b`` or
``\u202e``. Bytes of a path that are not UTF-8 are written as ``\udcff``.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but for tab and line feed
    "\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"  # line separators, overrides of direction
    "\ud800-\udfff]"  # halves of surrogate pairs
)


def printable(text: str) -> str:
    """Return text in which unsafe characters are escaped; tabs and line feeds are kept."""
    return _UNSAFE.sub(_escape, text)


def printable_json(text: str) -> str:
    """Return JSON of the same value in which unsafe characters are escaped as JSON does it."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
