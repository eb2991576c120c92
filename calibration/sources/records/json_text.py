"""Strict JSON: no key twice, no NaN or infinity; messages give the place of an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from compressor.foreign_files.json_files import (
    TOO_DEEP,
    check_value_count,
    finite_float,
    is_too_deep,
)
from compressor.foreign_files.limits import LINE

_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
"""Strings, and the characters between values."""
_BLANKS = re.compile(r"[ \t\r\n\ufeff]*")


class JSONError(Exception):
    """Text that is not JSON.

    Attributes:
        position: index of the character in the text.
        at_end: True if the text stops inside of a value.
    """

    def __init__(self, message: str, position: int, *, at_end: bool) -> None:
        super().__init__(message)
        self.position, self.at_end = position, at_end


def parse_json(text: str) -> Any:
    """Return the value of a text that holds one JSON value.

    Raises:
        JSONError: it holds something else.
    """
    position = skip_blanks(text, 0)
    try:
        check_value_count(text)
    except ValueError as error:
        raise JSONError(str(error), position, at_end=False) from error
    value, end = parse_value(text, position)
    end = skip_blanks(text, end)
    if end < len(text):
        raise JSONError("text after the end of the JSON value", end, at_end=False)
    return value


def parse_value(text: str, position: int) -> tuple[Any, int]:
    """Return the JSON value that starts at a position, and the position after it.

    Raises:
        JSONError: no value starts there.
    """
    try:
        value, end = _DECODER.raw_decode(text, position)
        if is_too_deep(value):
            raise JSONError(TOO_DEEP, position, at_end=False)
        return value, end
    except json.JSONDecodeError as error:
        at_end = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
        raise JSONError(error.msg, error.pos, at_end=at_end) from error
    except ValueError as error:  # of the hooks below, or a number of too many digits
        raise JSONError(str(error), position, at_end=False) from error
    except RecursionError as error:
        raise JSONError(TOO_DEEP, position, at_end=False) from error


def array_items(text: str, position: int) -> Iterator[tuple[int, Any]]:
    """Yield the items of the array that opens at a position, each with its position.

    Raises:
        JSONError: an item is not JSON, or the array does not end, or more follows it.
    """
    position = skip_blanks(text, position + 1)
    is_large = len(text) > LINE.most_bytes
    if text[position : position + 1] != "]":
        while True:
            if is_large and end_of_item(text, position) - position > LINE.most_bytes:
                raise JSONError("an item is too long", position, at_end=False)
            value, end = parse_value(text, position)
            yield position, value
            position = skip_blanks(text, end)
            if text[position : position + 1] != ",":
                break
            position = skip_blanks(text, position + 1)
    if text[position : position + 1] != "]":
        at_end = position >= len(text)
        raise JSONError("Expecting ',' or ']' after an item", position, at_end=at_end)
    position = skip_blanks(text, position + 1)
    if position < len(text):
        raise JSONError("text after the end of the array", position, at_end=False)


def end_of_item(text: str, position: int) -> int:
    """Return a position at or behind the end of an array's item, found without parsing it."""
    depth = 0
    for match in _STRUCTURE.finditer(text, position):
        character = match[0]
        depth += (character in "[{") - (character in "]}")
        if depth < 0 or (depth == 0 and character != '"' and character in ",]}"):
            return match.end()
        if match.end() - position > LINE.most_bytes:
            break
    return len(text)


def skip_blanks(text: str, position: int) -> int:
    """Return the position of the first character that is no white space."""
    match = _BLANKS.match(text, position)
    return match.end() if match else position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON: write null or a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=finite_float
)
