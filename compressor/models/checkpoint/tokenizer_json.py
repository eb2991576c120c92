"""Facts of a tokenizer.json without the library that runs it."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading
from compressor.artifacts.files import LFS_POINTER
from compressor.errors import DataError

_MERGES = re.compile(rb'"merges"\s*:\s*\[')
"""Start of the merges of a BPE, which are more than half of its file."""


def largest_token_id(file: Path) -> int:
    """Return the largest id that a tokenizer can give: of its vocabulary or its added tokens.

    Raises:
        DataError: the file is not a tokenizer.
        StorageError: the file cannot be read.
    """
    return _facts_of(file)[0]


def has_saved_limits(file: Path) -> bool:
    """Return True if a tokenizer is saved with a truncation or a padding; errors as above."""
    return _facts_of(file)[1]


def _facts_of(file: Path) -> tuple[int, bool]:
    with reading(file):
        status = file.stat()
    return _read_facts(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read_facts(file: Path, mtime_ns: int, size: int) -> tuple[int, bool]:  # noqa: ARG001  keys
    """Return the largest token id, and True if the tokenizer is saved with limits."""
    with reading(file):
        content = file.read_bytes()
    if content.startswith(LFS_POINTER):
        raise DataError(
            f"{file} is a Git LFS pointer, not the file it stands for",
            remedy="fetch the file itself: `git lfs pull`",
        )
    try:
        tree = _without_merges(content) or json.loads(content)
        ids = [token["id"] for token in tree.get("added_tokens") or []]
        vocabulary = tree["model"]["vocab"]
        if isinstance(vocabulary, dict):  # BPE, WordPiece, WordLevel
            ids.append(max(vocabulary.values(), default=-1))
        else:  # Unigram: pairs of token and score in the order of their ids
            ids.append(len(vocabulary) - 1)
        largest = max(ids)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is not a tokenizer: expected a vocabulary under model.vocab",
            remedy="copy the checkpoint's files again",
        ) from error
    if not isinstance(largest, int) or largest < 0:
        raise DataError(f"{file} is not a tokenizer: its vocabulary is empty")
    return largest, bool(tree.get("truncation") or tree.get("padding"))


def _without_merges(content: bytes) -> Any:
    """Return a tokenizer's content without its merges; None if they are not at the end of it."""
    merges = _MERGES.search(content)
    if merges is None or content[merges.start() - 1] == ord("\\"):  # inside of a string
        return None
    try:
        tree = json.loads(content[: merges.start()].rstrip().removesuffix(b",") + b"}}")
    except ValueError:
        return None
    return tree if "added_tokens" in tree and "vocab" in tree.get("model", ()) else None
