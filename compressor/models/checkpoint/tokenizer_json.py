"""Facts of a tokenizer.json without the library that runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.foreign_files.json_files import parse_json
from compressor.foreign_files.limits import TOKENIZER
from compressor.foreign_files.opening import check_file, read_bytes

_REMEDY = "copy the checkpoint's files again"
_MERGES = re.compile(rb'"merges"\s*:\s*\[')
"""Start of the merges of a BPE, which are more than half of its file."""


def largest_token_id(file: Path) -> int:
    """Return the largest id that a tokenizer can give: of its vocabulary or its added tokens.

    Raises:
        DataError: the file is not a tokenizer.
        StorageError: the file cannot be read.
    """
    return _facts_of(file).largest


def has_saved_limits(file: Path) -> bool:
    """Return True if a tokenizer is saved with a truncation or a padding; errors as above."""
    return _facts_of(file).has_limits


def _facts_of(file: Path) -> _Facts:
    check_file(file, DataError, TOKENIZER)
    status = file.stat()
    return _read_facts(file, status.st_mtime_ns, status.st_size)


def added_tokens(file: Path) -> dict[str, int]:
    """Return the ids of tokens beside the vocabulary, such as special ones; errors as above."""
    return dict(_facts_of(file).added)


@dataclass(frozen=True, slots=True)
class _Facts:
    largest: int
    has_limits: bool
    added: tuple[tuple[str, int], ...]


@lru_cache(maxsize=64)
def _read_facts(file: Path, mtime_ns: int, size: int) -> _Facts:  # noqa: ARG001  keys
    content = read_bytes(file, TOKENIZER, DataError)
    tree = _without_merges(content) or parse_json(
        content, str(file), DataError, _REMEDY, TOKENIZER.most_values
    )
    try:
        added = tuple(
            (str(token["content"]), token["id"]) for token in tree.get("added_tokens") or []
        )
        ids = [number for _, number in added]
        vocabulary = tree["model"]["vocab"]
        if isinstance(vocabulary, dict):  # BPE, WordPiece, WordLevel
            ids.append(max(vocabulary.values(), default=-1))
        else:  # Unigram: pairs of token and score in the order of their ids
            ids.append(len(vocabulary) - 1)
        largest = max(ids)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a tokenizer: expected a vocabulary under model.vocab", remedy=_REMEDY
        ) from error
    if not isinstance(largest, int) or largest < 0:
        raise DataError(f"{file} is not a tokenizer: its vocabulary is empty")
    return _Facts(largest, bool(tree.get("truncation") or tree.get("padding")), added)


def _without_merges(content: bytes) -> Any:
    """Return a tokenizer's content without its merges; None if they are not at the end of it."""
    merges = _MERGES.search(content)
    if merges is None or content[merges.start() - 1] == ord("\\"):  # inside of a string
        return None
    start = content[: merges.start()].rstrip().removesuffix(b",") + b"}}"
    try:
        tree = parse_json(start, "", DataError, None)
        return tree if "added_tokens" in tree and "vocab" in tree["model"] else None
    except (DataError, LookupError, TypeError):
        return None
