"""SHA-256 digests of JSON values, files and folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from compressor.errors import StorageError
from compressor.foreign_files.opening import open_file

_CHUNK_BYTES = 1 << 22

ReadObserver = Callable[[Path, int, int], None]
"""Takes a file that is being hashed, the bytes read so far and its size."""
_observer: ContextVar[ReadObserver | None] = ContextVar("observer", default=None)


@contextmanager
def observed_reads(observer: ReadObserver) -> Iterator[None]:
    """Call an observer while files are hashed within the block, about every 4 MB."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def report_read(path: Path, done: int, total: int) -> None:
    """Call the observer, if there is one, with the bytes of a file that have been read."""
    observer = _observer.get()
    if observer is not None:
        observer(path, done, total)


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_json(value: Any) -> str:
    """Return the sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes.

    Raises:
        StorageError: the file cannot be read.
    """
    digest = hashlib.sha256()
    done = 0
    with open_file(path, StorageError) as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report_read(path, done, total)
    return digest.hexdigest()


def digest_tree(root: Path, pattern: str = "*") -> str:
    """Return the sha256 over paths and contents of the matching files below ``root``."""
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in files})
