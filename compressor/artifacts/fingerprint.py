"""SHA-256 digests of JSON values, files and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from compressor.errors import StorageError
from compressor.foreign_files.opening import open_file

_CHUNK_BYTES = 1 << 22


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
    with open_file(path, StorageError) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_tree(root: Path, pattern: str = "*") -> str:
    """Return the sha256 over paths and contents of the matching files below ``root``."""
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in files})
