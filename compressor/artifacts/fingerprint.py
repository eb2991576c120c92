"""sha256 of JSON values and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading

_CHUNK_BYTES = 1 << 22


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, NaN refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_tree(root: Path, pattern: str = "*") -> str:
    """sha256 over the relative paths and contents of the files below ``root`` that match ``pattern``."""
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in files})
