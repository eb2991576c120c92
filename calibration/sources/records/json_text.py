"""Strict JSON: no key twice, no NaN or infinity; messages give the place of an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

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
    value, end = parse_value(text, skip_blanks(text, 0))
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
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        at_end = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
        raise JSONError(error.msg, error.pos, at_end=at_end) from error
    except ValueError as error:  # of the hooks below, or a number of too many digits
        raise JSONError(str(error), position, at_end=False) from error
    except RecursionError as error:
        raise JSONError("lists or objects are nested too deeply", position, at_end=False) from error


def array_items(text: str, position: int) -> Iterator[tuple[int, Any]]:
    """Yield the items of the array that opens at a position, each with its position.

    Raises:
        JSONError: an item is not JSON, or the array does not end, or more follows it.
    """
    position = skip_blanks(text, position + 1)
    if text[position : position + 1] != "]":
        while True:
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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
