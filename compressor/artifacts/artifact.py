"""One artifact: the folder of a model, its manifest and its reports; reading and verifying it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from compressor.artifacts.fingerprint import digest_file
from compressor.artifacts.manifest import SCHEMA_VERSION, FileEntry, Manifest
from compressor.errors import CompressError, DamagedArtifactError, StorageError, UsageError
from compressor.foreign_files.limits import RECORD
from compressor.foreign_files.opening import read_bytes

MANIFEST = "manifest.json"
MODEL = "model"
REPORTS = "reports"
LOGS = "logs"
NEXT = ".next"
"""Folder in an artifact: its new manifest and reports. While it is there, it is what counts."""
_PERMISSION = "ask its owner to make it readable; a setgid folder serves a group"
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact directory."""

    path: Path
    manifest: Manifest
    reports: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Contents of reports that were read together with the manifest: see ``records``."""

    @property
    def id(self) -> str:
        """The full id."""
        return self.manifest.id

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The folder that its consumer loads."""
        return self.path / MODEL

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists, or of the manifest itself."""
        if name.startswith(f"{MODEL}/"):
            return self.path / name
        return _report_root(self.path) / name


def is_artifact(path: Path) -> bool:
    """Return True if a folder holds an artifact, complete or damaged."""
    if (path / MANIFEST).is_file():
        return True
    return _ARTIFACT_NAME.fullmatch(path.name) is not None and (path / MODEL).is_dir()


def open_artifact(path: Path) -> Artifact:
    """Return the artifact at ``path``; the manifest is checked, the files are not (see ``verify``).

    Raises:
        UsageError: the path holds no artifact.
        DamagedArtifactError: the manifest is missing, torn, changed, or of a newer schema.
    """
    if not is_artifact(path):
        raise UsageError(
            f"{path} is not an artifact: it has no {MANIFEST}",
            remedy="name a folder like artifacts/<pass>-<id>; `autoglm-compress show` lists them",
        )
    file, text = _read_manifest(path)
    try:
        raw = json.loads(text)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DamagedArtifactError(
                f"{file} has schema version {version}; this program reads up to {SCHEMA_VERSION}",
                remedy="install a newer autoglm-compress",
            )
        manifest = Manifest.model_validate_json(text)
        intact = manifest.digest == manifest.content_digest()
    except (ValueError, ValidationError, RecursionError) as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if not intact:
        raise DamagedArtifactError(f"{file} is damaged: its content does not match its own digest")
    return Artifact(path, manifest)


def _report_root(path: Path) -> Path:
    """Return the folder with an artifact's manifest and reports: see ``Store.replace_reports``."""
    following = path / NEXT
    return following if (following / MANIFEST).is_file() else path


def _read_manifest(path: Path) -> tuple[Path, bytes]:
    for file in (path / NEXT / MANIFEST, path / MANIFEST):
        if file.is_file():
            if not os.access(file, os.R_OK):  # another user's: not damaged
                raise StorageError(f"no permission to read {file}", remedy=_PERMISSION)
            try:
                return file, read_bytes(file, RECORD, DamagedArtifactError)
            except DamagedArtifactError:
                if file.is_file():  # else it has just got its final name
                    raise
    raise DamagedArtifactError(f"{path / MANIFEST} is missing: {path} is damaged")


def damage(artifact: Artifact, entries: Mapping[str, FileEntry], folder: str) -> list[str]:
    """Return what is wrong with the listed files, and the unlisted files below ``folder``."""
    root = artifact.path if folder == MODEL else _report_root(artifact.path)
    return folder_damage(root, entries, folder)


def folder_damage(root: Path, entries: Mapping[str, FileEntry], folder: str) -> list[str]:
    """Return what is wrong with files below ``root``, and the unlisted ones in ``root/folder``."""
    problems = []
    for relative, entry in entries.items():
        file = root / relative
        if file.is_symlink() or not file.is_file():
            problems.append(f"{relative}: missing")
        elif (size := file.stat().st_size) != entry.bytes:
            problems.append(f"{relative}: {size} bytes, {entry.bytes} expected")
        elif digest_file(file) != entry.sha256:
            problems.append(f"{relative}: its content has changed (sha256 differs)")
    problems.extend(
        f"{relative}: not in the manifest"
        for relative in list_files(root, folder)
        if relative not in entries
    )
    return problems


def verify(artifact: Artifact) -> None:
    """Check every file, model and reports, against the manifest.

    Raises:
        DamagedArtifactError: names every file that differs.
    """
    manifest = artifact.manifest
    problems = damage(artifact, manifest.files, MODEL)
    problems += damage(artifact, manifest.reports, REPORTS)
    if problems:
        raise DamagedArtifactError(
            f"{artifact.path} is damaged:\n" + "\n".join(f"    {line}" for line in problems)
        )


def verified_artifact(path: Path) -> Artifact:
    """Return the artifact at ``path`` with every file checked, also while it is measured again.

    Raises:
        UsageError: the path holds no artifact.
        DamagedArtifactError: a file differs from the manifest.
    """
    while True:
        artifact = open_artifact(path)
        try:
            verify(artifact)
        except (DamagedArtifactError, StorageError):
            if not was_replaced(artifact):
                raise
        else:
            return artifact


def was_replaced(artifact: Artifact) -> bool:
    """Return True if another manifest has taken the place of the one in hand."""
    try:
        return open_artifact(artifact.path).manifest.digest != artifact.manifest.digest
    except CompressError:
        return False


def list_files(root: Path, folder: str) -> list[str]:
    """Return the POSIX paths, relative to ``root``, of the files below ``root/folder``, sorted."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in (root / folder).rglob("*")
        if not path.is_dir()
    )


def entries_of(root: Path, *names: str) -> dict[str, FileEntry]:
    """Return size and sha256 of the named files, and of the files below the named folders."""
    entries = {}
    for name in names:
        files = [name] if (root / name).is_file() else list_files(root, name)
        for relative in files:
            file = root / relative
            entries[relative] = FileEntry(sha256=digest_file(file), bytes=file.stat().st_size)
    return entries
