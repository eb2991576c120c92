"""The index of a store's runs: their metrics, without reading thousands of records again.

Whole metrics and those of slices are two files, since most readers need the former alone. Each has
a digest. An entry is used while inode, size and times of its run's files are unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.artifacts.files import write_atomic
from compressor.artifacts.run_folders import LADDER, RECORD, RUNS
from compressor.errors import CompressError, DamagedArtifactError
from compressor.foreign_files.limits import MEBIBYTE, FileKind
from compressor.foreign_files.opening import read_bytes

Entry = dict[str, Any]
"""Values of a run as JSON, and the stamp of the files that they were read from."""
METRICS, SLICES = ".index.json", ".slices.json"
_VERSION = b"2"
"""Version of the layout: an index of another version does not match its digest."""
_DIGEST_CHARACTERS = 64
_KIND = FileKind("indexes of runs", 256 * MEBIBYTE)


def stamp(folder: Path) -> list[list[int]]:
    """Return inode, size, and times of change of a run's files; empty if one is missing.

    The time of change (ctime) cannot be set back, so that no edit goes unnoticed.
    """
    stamps = []
    for name in (RECORD, LADDER):
        try:
            status = os.lstat(f"{folder}/{name}")
        except OSError:
            return []
        stamps.append([status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return stamps


def read_index(store: Path, name: str) -> dict[str, Entry]:
    """Return the indexed runs by folder name; none if the index is missing or damaged."""
    with suppress(CompressError, ValueError):
        content = read_bytes(store / RUNS / name, _KIND, DamagedArtifactError)
        digest, text = content[:_DIGEST_CHARACTERS], content[_DIGEST_CHARACTERS:]
        if hashlib.sha256(_VERSION + text).hexdigest().encode() == digest:
            index: dict[str, Entry] = json.loads(text)
            return index
    return {}


def write_index(store: Path, name: str, entries: Mapping[str, Entry]) -> None:
    """Write an index; a store that cannot be written has none."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    with suppress(OSError):
        digest = hashlib.sha256(_VERSION + text).hexdigest().encode()
        write_atomic(store / RUNS / name, digest + text)
