"""One record of a file, and the list of problems with a file's records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import DataError

_LISTED = 10


@dataclass(frozen=True, slots=True)
class DataRecord:
    """One record: an object of a JSON file, or a row of a table."""

    file: Path
    place: str
    """Place in the file, for messages: ``:12`` or `` row 12``."""
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.file}{self.place}"


class RecordError(Exception):
    """A problem with one record; the message does not repeat the record's place."""


class UnknownKeysError(RecordError):
    """A record, or an object in it, has keys that nothing reads.

    Attributes:
        names: the keys.
    """

    def __init__(self, names: Sequence[str]) -> None:
        plural = "s" if len(names) > 1 else ""
        super().__init__(f"unknown key{plural} {', '.join(map(repr, names))}")
        self.names = names


class ProblemList:
    """Problems with records; the first of them are kept, and the others counted."""

    def __init__(self) -> None:
        self._listed: list[str] = []
        self._count = 0

    def add(self, problem: str) -> None:
        """Add a problem."""
        self._count += 1
        if len(self._listed) < _LISTED:
            self._listed.append(problem)

    def __iter__(self) -> Iterator[str]:
        yield from self._listed
        if more := self._count - len(self._listed):
            yield f"… and {more} more"

    def raise_if_any(self) -> None:
        """Raise the problems.

        Raises:
            DataError: there are problems.
        """
        if self._count:
            raise DataError("\n".join(self))


def json_type(value: Any) -> str:
    """Return the name of a value's type in JSON, with its article, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def checked_text(value: Any, name: str) -> str:
    """Return a value that is text.

    Args:
        value: any value of a record.
        name: its name for messages.

    Raises:
        RecordError: it is no string, or holds half of a surrogate pair, which no encoding has.
    """
    if not isinstance(value, str):
        raise RecordError(f"{name} is {json_type(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        raise RecordError(f"{name} holds {code}, half of a surrogate pair") from error
    return value
