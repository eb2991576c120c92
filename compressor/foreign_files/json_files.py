"""Read JSON that others wrote: strict, in UTF-8, with a bounded number and nesting of values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from compressor.errors import CompressError
from compressor.foreign_files.limits import CONFIG, MOST_DEPTH, MOST_VALUES, RECORD, FileKind
from compressor.foreign_files.opening import check_file, decode_utf8, read_bytes, read_text

M = TypeVar("M", bound=BaseModel)
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LISTED_PROBLEMS = 30
_HARMLESS_BYTES = 1 << 20
"""Size of a file that any parser reads in little memory."""
_TYPE_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


def read_json(
    file: Path,
    error_type: type[CompressError],
    *,
    remedy: str | None,
    kind: FileKind = CONFIG,
) -> Any:
    """Return the value in a JSON file.

    Args:
        file: the file.
        error_type: the class of the error.
        remedy: what the user can do about content that is not JSON.
        kind: the kind of the file, which limits its size.

    Raises:
        CompressError: of ``error_type``: the file cannot be read, or is not JSON.
        StorageError: the machine cannot read the file.
    """
    content = read_bytes(file, kind, error_type, remedy)
    return parse_json(content, str(file), error_type, remedy, kind.most_values)


def read_json_object(
    file: Path,
    error_type: type[CompressError],
    *,
    remedy: str | None,
    kind: FileKind = CONFIG,
) -> dict[str, Any]:
    """Return the object in a JSON file; arguments and errors as ``read_json``."""
    value = read_json(file, error_type, remedy=remedy, kind=kind)
    tree: dict[str, Any] = expect(value, dict, str(file), error_type, remedy)
    return tree


def read_json_record(
    file: Path, record: type[M], error_type: type[CompressError], *, remedy: str | None
) -> M:
    """Read a JSON file and validate it as a record.

    Args:
        file: the file.
        record: the class of the record.
        error_type: the class of the error for content that does not fit.
        remedy: what the user can do about damaged content.

    Raises:
        CompressError: of ``error_type``; the message names the fields that do not fit.
        StorageError: the machine cannot read the file.
    """
    content = read_bytes(file, RECORD, error_type, remedy)
    return parse_record(content, record, str(file), error_type, remedy)


def parse_record(
    content: bytes,
    record: type[M],
    where: str,
    error_type: type[CompressError],
    remedy: str | None,
) -> M:
    """Return a record from JSON text; errors as ``read_json_record``."""
    parse_json(content, where, error_type, remedy)
    try:
        return record.model_validate_json(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [
            f"    {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in problems[:_LISTED_PROBLEMS]
        ]
        raise error_type(f"{where} is damaged:\n" + "\n".join(lines), remedy=remedy) from error


def parse_json(
    content: bytes,
    where: str,
    error_type: type[CompressError],
    remedy: str | None,
    most_values: int = MOST_VALUES,
) -> Any:
    """Return the value of JSON text in UTF-8, with or without a byte order mark.

    NaN, infinity, numbers that a float cannot hold, and halves of surrogate pairs are refused.

    Args:
        content: the text.
        where: its file, for messages.
        error_type: the class of the error.
        remedy: what the user can do.
        most_values: the most values that it may have.

    Raises:
        CompressError: of ``error_type``.
    """
    text = decode_utf8(content, where, error_type, remedy)
    try:
        check_value_count(text, most_values)
        value = json.loads(text, parse_constant=refuse_constant, parse_float=finite_float)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where} is not valid JSON: {_reason(error)}", remedy=remedy) from error
    if is_too_deep(value):
        raise error_type(f"{where}: {TOO_DEEP}", remedy=remedy)
    return value


def check_json_file(file: Path, kind: FileKind, error_type: type[CompressError]) -> None:
    """Check a JSON file before a library parses it: its size, encoding and number of values.

    Args:
        file: the file.
        kind: its kind, which limits its size.
        error_type: the class of the error.

    Raises:
        CompressError: of ``error_type``.
        StorageError: the machine cannot read it.
    """
    if check_file(file, error_type, kind) <= _HARMLESS_BYTES:
        return
    try:
        check_value_count(read_text(file, kind, error_type), kind.most_values)
    except ValueError as error:
        raise error_type(f"{file}: {error}", remedy="copy the file again") from error


def expect(
    value: Any,
    expected: type[Any],
    where: str,
    error_type: type[CompressError],
    remedy: str | None,
) -> Any:
    """Return a value of JSON that has the expected type.

    Args:
        value: any value.
        expected: ``dict``, ``list``, ``str``, ``int``, ``float`` (which integers are too) or
            ``bool``.
        where: its place, such as the file and the key, for messages.
        error_type: the class of the error.
        remedy: what the user can do.

    Raises:
        CompressError: of ``error_type``: it has another type.
    """
    allowed: tuple[type, ...] = (int, float) if expected is float else (expected,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and expected is not bool):
        actual = next((name for type_, name in _TYPE_NAMES.items() if type(value) is type_), "null")
        raise error_type(f"{where} is {actual}, expected {_TYPE_NAMES[expected]}", remedy=remedy)
    return value


TOO_DEEP = f"lists or objects are nested too deeply; at most {MOST_DEPTH} levels are read"


def check_value_count(text: str, most: int = MOST_VALUES) -> None:
    """Check that JSON text does not expand to more values than fit into memory.

    Raises:
        ValueError: it has more than ``most`` values.
    """
    if _value_bound(text) > most and _value_bound(_STRINGS.sub("", text)) > most:
        raise ValueError(f"it has more than {most} values")


def is_too_deep(value: Any) -> bool:
    """Return True if the lists and objects of a value have more than ``MOST_DEPTH`` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def refuse_constant(name: str) -> float:
    """Refuse NaN and infinity, which are no numbers of JSON.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"it contains {name}, which is no number of JSON")


def finite_float(text: str) -> float:
    """Return the float that a text stands for.

    Raises:
        ValueError: it is too large for a float.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it contains {text[:40]}, which is too large for a float")
    return value


def _value_bound(text: str) -> int:
    """Return an upper bound of the number of values; commas in strings count too."""
    return 1 + text.count(",") + text.count("[") + text.count("{")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, UnicodeEncodeError):
        return "a text holds half of a surrogate pair"
    return str(error)
