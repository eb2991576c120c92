"""The artifact store: stage, publish, verify, set aside, collect.

Layout of a store::

    <root>/<pass>-<id12>/     a complete artifact
    <root>/.staging/<id12>/   an unfinished step: work/ (checkpoints) and out/ (the artifact)
    <root>/.locks/<id12>      locked (flock) while the artifact is built or measured; the kernel
                              releases it on a kill
    <root>/.damaged/          artifacts that failed verification, kept for inspection
    <root>/runs/              one record per run
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from compressor.artifacts.errors_from_os import reading, storage_error, writing
from compressor.artifacts.files import (
    fsync_directory,
    fsync_tree,
    lock_file,
    require_file_locks,
    write_atomic,
)
from compressor.artifacts.fingerprint import digest_file
from compressor.artifacts.manifest import SCHEMA_VERSION, FileEntry, Manifest
from compressor.errors import DamagedArtifactError, UsageError

MANIFEST = "manifest.json"
MODEL = "model"
REPORTS = "reports"
LOGS = "logs"
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact directory."""

    path: Path
    manifest: Manifest

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

    @property
    def reports(self) -> Path:
        """The folder of the reports."""
        return self.path / REPORTS


def open_artifact(path: Path) -> Artifact:
    """Return the artifact at ``path``; the manifest is checked, the files are not (see ``verify``).

    Raises:
        UsageError: the path holds no artifact.
        DamagedArtifactError: the manifest is torn, changed, or of a newer schema.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise UsageError(
            f"{path} is not an artifact: it has no {MANIFEST}",
            remedy="name a folder like artifacts/<pass>-<id>; `autoglm-compress show` lists them",
        )
    with reading(file):
        text = file.read_bytes()
    try:
        raw = json.loads(text)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DamagedArtifactError(
                f"{file} has schema version {version}; this program reads up to {SCHEMA_VERSION}",
                remedy="install a newer autoglm-compress",
            )
        manifest = Manifest.model_validate_json(text)
    except (ValueError, ValidationError, RecursionError) as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if manifest.digest != manifest.content_digest():
        raise DamagedArtifactError(f"{file} is damaged: its content does not match its own digest")
    return Artifact(path, manifest)


def damage(artifact: Artifact, entries: dict[str, FileEntry], folder: str) -> list[str]:
    """Return what is wrong with the listed files, and the unlisted files below ``folder``."""
    problems = []
    for relative, entry in entries.items():
        file = artifact.path / relative
        if file.is_symlink() or not file.is_file():
            problems.append(f"{relative}: missing")
        elif (size := file.stat().st_size) != entry.bytes:
            problems.append(f"{relative}: {size} bytes, {entry.bytes} expected")
        elif digest_file(file) != entry.sha256:
            problems.append(f"{relative}: its content has changed (sha256 differs)")
    problems.extend(
        f"{relative}: not in the manifest"
        for relative in list_files(artifact.path, folder)
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


class Store:
    """A folder that holds the artifacts of one or more pipelines."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, pass_name: str, artifact_id: str) -> Path:
        """Return the folder of an artifact, whether it exists or not."""
        return self.root / f"{pass_name}-{artifact_id[:_SHORT]}"

    def find(self, pass_name: str, artifact_id: str) -> Artifact | None:
        """Return the published artifact or None; the manifest is checked, the files are not.

        Raises:
            DamagedArtifactError: as ``open_artifact``; or the folder holds another artifact.
        """
        path = self.path_of(pass_name, artifact_id)
        if not path.is_dir():
            return None
        if not (path / MANIFEST).is_file():
            raise DamagedArtifactError(f"{path} is damaged: {MANIFEST} is missing")
        artifact = open_artifact(path)
        if artifact.id != artifact_id:
            raise DamagedArtifactError(
                f"{path} is damaged: it holds the artifact {artifact.id[:_SHORT]}"
            )
        return artifact

    def exists(self) -> bool:
        """Return True if the root has a store's folders or artifacts, or is empty."""
        markers = (".staging", ".locks", "runs")
        if any((self.root / name).is_dir() for name in markers):
            return True
        return self.root.is_dir() and (
            next(self.artifacts(), None) is not None or not any(self.root.iterdir())
        )

    def was_used(self) -> bool:
        """Return True if artifacts were built here; a folder ``runs`` may be another tool's."""
        built = any((self.root / name).is_dir() for name in (".staging", ".locks"))
        return built or next(self.artifacts(), None) is not None

    def artifacts(self) -> Iterator[Path]:
        """Yield the folders of the published artifacts, oldest first."""
        if self.root.is_dir():
            folders = [
                path
                for path in self.root.iterdir()
                if not path.name.startswith(".") and (path / MANIFEST).is_file()
            ]
            yield from sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))

    @contextmanager
    def lock(self, artifact_id: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Lock one artifact to build or measure it; call ``waiting`` if another run has it."""
        path = self.root / ".locks" / artifact_id[:_SHORT]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a")
        with handle:
            if not lock_file(handle, wait=False):
                waiting()
                lock_file(handle, wait=True)
            yield

    def staging(self, artifact_id: str) -> Path:
        """Return the folder of an unfinished artifact; the files of an interrupted run are kept."""
        path = self.root / ".staging" / artifact_id[:_SHORT]
        with writing(path):
            (path / "work").mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, staged: Path, manifest: Manifest) -> Artifact:
        """Write the manifest of ``staged`` and give it its final name, atomically.

        Raises:
            StorageError: the disk is full, or the store is not writable; nothing is published.
        """
        final = self.path_of(manifest.pass_.name, manifest.id)
        sealed = manifest.sealed()
        with writing(final):
            write_atomic(staged / MANIFEST, sealed.model_dump_json(indent=1).encode())
        return self.adopt(staged, sealed)

    def adopt(self, staged: Path, manifest: Manifest) -> Artifact:
        """Give a complete artifact its final name, atomically; errors as ``publish``."""
        final = self.path_of(manifest.pass_.name, manifest.id)
        with writing(final):
            fsync_tree(staged)
            staged.rename(final)
            fsync_directory(self.root)
        return Artifact(final, manifest)

    def replace_reports(self, artifact: Artifact, staged: Path, manifest: Manifest) -> Artifact:
        """Replace the reports of an artifact; the model is unchanged.

        A kill in between leaves reports that do not match the manifest; the next run measures
        again.
        """
        sealed = manifest.sealed()
        with writing(artifact.path):
            write_atomic(artifact.path / MANIFEST, sealed.model_dump_json(indent=1).encode())
            for relative in artifact.manifest.reports.keys() - sealed.reports.keys():
                (artifact.path / relative).unlink(missing_ok=True)
            for relative in sealed.reports:
                write_atomic(artifact.path / relative, (staged / relative).read_bytes())
        return Artifact(artifact.path, sealed)

    def set_aside(self, path: Path) -> Path:
        """Move a damaged artifact to ``.damaged`` for inspection, and return its new path."""
        target = (
            self.root
            / ".damaged"
            / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 10**6:06d}"
        )
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        return target

    def discard(self, staged: Path) -> None:
        """Remove a staging folder."""
        with writing(staged):
            shutil.rmtree(staged)

    def has_staging(self, artifact_id: str) -> bool:
        """Return True if an unfinished step has left files to resume from."""
        return (self.root / ".staging" / artifact_id[:_SHORT]).is_dir()

    def discard_staging(self, artifact_id: str) -> None:
        """Remove the staging folder of a run that was killed right after publishing."""
        path = self.root / ".staging" / artifact_id[:_SHORT]
        if path.is_dir():
            self.discard(path)

    def garbage(self, keep: set[str]) -> list[Path]:
        """Return the paths that ``gc`` removes.

        These are artifacts whose id is neither in ``keep`` nor an ancestor of one that is, staging
        folders, and damaged artifacts; locked artifacts are excluded.
        """
        manifests = {}
        for path in self.artifacts():
            try:
                manifests[path] = open_artifact(path).manifest
            except DamagedArtifactError:
                continue
        parents = {manifest.id: set(manifest.parents.values()) for manifest in manifests.values()}
        needed, frontier = set(keep), set(keep)
        while frontier:
            frontier = set().union(*(parents.get(id_, set()) for id_ in frontier)) - needed
            needed |= frontier
        garbage = [path for path, manifest in manifests.items() if manifest.id not in needed]
        for folder in (".staging", ".damaged"):
            if (self.root / folder).is_dir():
                garbage.extend(sorted((self.root / folder).iterdir()))
        return [path for path in garbage if not self._locked(path)]

    def remove(self, path: Path) -> None:
        """Remove an artifact or a leftover; it leaves its final name in one rename."""
        doomed = self.root / ".staging" / f"removing-{path.name}-{os.getpid()}"
        with writing(path):
            doomed.parent.mkdir(parents=True, exist_ok=True)
            path.rename(doomed)
            shutil.rmtree(doomed)

    def _locked(self, path: Path) -> bool:
        lock = (
            self.root
            / ".locks"
            / (path.name if path.parent.name == ".staging" else path.name.rsplit("-", 1)[-1])
        )
        if not lock.is_file():
            return False
        with lock.open("a") as handle:
            return not lock_file(handle, wait=False)

    def check_writable(self) -> None:
        """Check that this process may write to the store and lock its artifacts.

        Raises:
            StorageError: The store is not writable, or this platform has no file locks.
        """
        require_file_locks()
        staging = self.root / ".staging"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=staging):
                pass
        except OSError as error:
            raise storage_error(error, self.root) from error
