"""Read the reports of artifacts and the files of runs: the one place that checks their digests.

A manifest lists the digest of each report, and a run's record that of each file beside it. What
does not match is an error for the command that needs it, never a value. What is not listed does
not exist.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from compressor.artifacts.artifact import NEXT, REPORTS, Artifact, open_artifact, was_replaced
from compressor.artifacts.errors_from_os import reading
from compressor.artifacts.manifest import FileEntry
from compressor.errors import DamagedArtifactError

M = TypeVar("M", bound=BaseModel)


def read_report(artifact: Artifact, name: str, record: type[M]) -> M | None:
    """Return a report of an artifact, such as ``reports/latency.json``; None if it has none.

    Raises:
        DamagedArtifactError: the file is missing, differs from the manifest, or is not ``record``.
    """
    entry = artifact.manifest.reports.get(name)
    if entry is None:
        return None
    content = artifact.reports.get(name)
    if content is None:
        content = _read_report(artifact, name, entry)
    return parse(artifact.path / name, content, record)


def open_with_reports(path: Path) -> Artifact:
    """Return the artifact at ``path`` with its reports in memory, all of one measurement.

    A report that is damaged is left out, and an error when it is read.

    Raises:
        UsageError: the path holds no artifact.
        DamagedArtifactError: the manifest is damaged.
    """
    while True:
        artifact = with_reports(open_artifact(path))
        listed = [name for name in artifact.manifest.reports if _is_report(name)]
        if len(listed) == len(artifact.reports) or not was_replaced(artifact):
            return artifact


def with_reports(artifact: Artifact) -> Artifact:
    """Return the artifact with its reports in memory, so that they stay those of its manifest."""
    reports = {}
    for name, entry in artifact.manifest.reports.items():
        if _is_report(name):
            try:
                reports[name] = _read_report(artifact, name, entry)
            except DamagedArtifactError:
                continue
    return replace(artifact, reports=reports)


def read_listed(file: Path, entry: FileEntry) -> bytes:
    """Return the content of a file whose size and digest are recorded.

    Raises:
        DamagedArtifactError: it is missing, not a regular file, or has another content.
        StorageError: it cannot be read.
    """
    with reading(file):
        content = _read_regular(file, entry.bytes + 1)
    if content is None:
        raise DamagedArtifactError(f"{file} is damaged: it is missing, or not a regular file")
    if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DamagedArtifactError(f"{file} is damaged: its content has changed (sha256 differs)")
    return content


def read_unlisted(file: Path) -> bytes | None:
    """Return the content of a file without a recorded digest; None if there is none.

    Raises:
        StorageError: it cannot be read.
    """
    with reading(file):
        return _read_regular(file, -1)


def parse(file: Path, content: bytes, record: type[M]) -> M:
    """Validate the content of a JSON file as a record.

    Raises:
        DamagedArtifactError: it is not such a record.
    """
    try:
        return record.model_validate_json(content)
    except (ValidationError, RecursionError) as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def _is_report(name: str) -> bool:
    return name.startswith(f"{REPORTS}/") and name.endswith(".json")


def _read_report(artifact: Artifact, name: str, entry: FileEntry) -> bytes:
    """Read a report from ``.next`` or its final place, whichever is what the manifest lists."""
    places: Sequence[Path] = (artifact.path / NEXT / name, artifact.path / name)
    for file in places:
        try:
            return read_listed(file, entry)
        except DamagedArtifactError:
            continue
    return read_listed(artifact.path / name, entry)


def _read_regular(file: Path, limit: int) -> bytes | None:
    """Return up to ``limit`` bytes of a regular file; None if there is none, or it is a link."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        if file.is_symlink():
            return None
        raise
    with os.fdopen(descriptor, "rb") as handle:
        return handle.read(limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
