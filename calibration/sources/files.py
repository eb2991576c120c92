"""Text files and tokenizers that several sources read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.data.contract import SourceContext
from compressor.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def match_files(pattern: str, context: SourceContext) -> list[Path]:
    """Return the files that match a path or glob pattern, sorted.

    Relative patterns start from the base of the context.
    """
    path = Path(pattern)
    base = Path(path.anchor) if path.is_absolute() else context.base
    return sorted(file for file in base.glob(str(path.relative_to(path.anchor))) if file.is_file())


def no_match(pattern: str, context: SourceContext) -> str:
    """Return the message for a pattern that matches no file."""
    return f"{pattern} matches no file below {context.base}"


def read_text(file: Path) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from error


def tokenizer_file(name: str, context: SourceContext) -> Path:
    """Return the file of a tokenizer, which is named itself or by its folder."""
    path = context.base / name
    return path if path.suffix == ".json" else path / "tokenizer.json"


def tokenizer_problems(name: str, context: SourceContext) -> list[str]:
    """Return a message if a tokenizer's file is missing."""
    file = tokenizer_file(name, context)
    if file.is_file():
        return []
    return [f"there is no tokenizer at {file}; `tokenizer` is relative to pipeline.yaml"]


def open_tokenizer(file: Path) -> Tokenizer:
    """Open a tokenizer's file.

    Raises:
        DataError: the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no narrower class
        raise DataError(
            f"{file} is not a tokenizer: {error}", remedy="copy the checkpoint's files again"
        ) from error
