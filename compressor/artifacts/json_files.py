"""Read JSON files: objects, and typed records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from compressor.artifacts.errors_from_os import reading
from compressor.errors import CompressError

M = TypeVar("M", bound=BaseModel)


def read_json_object(file: Path, error_type: type[CompressError], *, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        file: the file.
        error_type: the class of the error for content that is no JSON object.
        remedy: what the user can do about such content.

    Raises:
        CompressError: of ``error_type``.
        StorageError: the file cannot be read.
    """
    with reading(file):
        content = file.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{file} is not valid JSON: {error}", remedy=remedy) from error
    if not isinstance(value, dict):
        raise error_type(f"{file} is not a JSON object", remedy=remedy)
    return value


def read_json_record(
    file: Path, record: type[M], error_type: type[CompressError], *, remedy: str
) -> M:
    """Read a JSON file and validate it as a record.

    Args:
        file: the file.
        record: the class of the record.
        error_type: the class of the error for content that does not fit.
        remedy: what the user can do about damaged content.

    Raises:
        CompressError: of ``error_type``; the message names every field that does not fit.
        StorageError: the file cannot be read.
    """
    with reading(file):
        content = file.read_bytes()
    try:
        return record.model_validate_json(content)
    except ValidationError as error:
        lines = [
            f"    {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise error_type(f"{file} is damaged:\n" + "\n".join(lines), remedy=remedy) from error
