"""The artifact store: stage, publish, verify, set aside, remove.

Layout of a store::

    <root>/<pass>-<id12>/        a complete artifact
    <root>/<pass>-<id12>/.next/  its new manifest and reports, while they replace the old ones
    <root>/.staging/<id12>/      an unfinished step: work/ (checkpoints) and out/ (the artifact)
    <root>/.staging/<token>-…/   a temporary folder of a running command
    <root>/.locks/<id12>         locked (flock) while the artifact is built, measured or replaced
    <root>/.locks/session-…      a running command, and the ids that it needs
    <root>/.damaged/             artifacts and records that failed verification, for inspection
    <root>/runs/                 one record per run

``docs/decisions/0019-trust.md`` states who may overlap whom.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.artifacts.artifact import (
    LOGS,
    MANIFEST,
    NEXT,
    REPORTS,
    Artifact,
    is_artifact,
    list_files,
    open_artifact,
    verify,
)
from compressor.artifacts.errors_from_os import storage_error, writing
from compressor.artifacts.exchange import replace_directory
from compressor.artifacts.files import (
    copy_file,
    fsync_directory,
    fsync_tree,
    require_file_locks,
    write_atomic,
)
from compressor.artifacts.locks import lock, try_lock
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.run_folders import RUNS
from compressor.artifacts.sessions import LOCKS, STAGING, Session, open_session
from compressor.errors import DamagedArtifactError

DAMAGED = ".damaged"
_SHORT = 12


class Store:
    """A folder that holds the artifacts of one or more pipelines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sessions: list[Session] = []

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
        if not is_artifact(path):
            raise DamagedArtifactError(f"{path} is damaged: {MANIFEST} is missing")
        artifact = open_artifact(path)
        if artifact.id != artifact_id:
            raise DamagedArtifactError(
                f"{path} is damaged: it holds the artifact {artifact.id[:_SHORT]}"
            )
        return artifact

    def exists(self) -> bool:
        """Return True if the root has a store's folders or artifacts, or is empty."""
        markers = (STAGING, LOCKS, RUNS)
        if any((self.root / name).is_dir() for name in markers):
            return True
        return self.root.is_dir() and (
            next(self.artifacts(), None) is not None or not any(self.root.iterdir())
        )

    def was_used(self) -> bool:
        """Return True if artifacts were built here; a folder ``runs`` may be another tool's."""
        built = any((self.root / name).is_dir() for name in (STAGING, LOCKS))
        return built or next(self.artifacts(), None) is not None

    def artifacts(self) -> Iterator[Path]:
        """Yield the folders of the published artifacts, damaged ones too, oldest first."""
        if self.root.is_dir():
            folders = []
            for path in self.root.iterdir():
                with suppress(FileNotFoundError):  # it is being removed
                    if not path.name.startswith(".") and is_artifact(path):
                        folders.append((path.stat().st_mtime_ns, path.name, path))
            yield from (path for _, _, path in sorted(folders))

    @contextmanager
    def session(self, ids: Iterable[str] = ()) -> Iterator[Session]:
        """Start a command that writes: `gc` keeps the artifacts ``ids`` until it ends."""
        with open_session(self.root, ids) as session:
            self._sessions.append(session)
            try:
                yield session
            finally:
                self._sessions.remove(session)

    @contextmanager
    def current_session(self) -> Iterator[Session]:
        """Yield the running session, or one for this operation."""
        if self._sessions:
            yield self._sessions[-1]
        else:
            with self.session() as session:
                yield session

    @contextmanager
    def lock(self, artifact_id: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Lock one artifact to build or replace it; call ``waiting`` if another command has it."""
        with lock(self.root / LOCKS / artifact_id[:_SHORT], waiting):
            yield

    @contextmanager
    def try_lock(self, artifact_id: str) -> Iterator[bool]:
        """Lock one artifact if it is free; yield False if another command has it."""
        with try_lock(self.root / LOCKS / artifact_id[:_SHORT]) as held:
            yield held

    def staging(self, artifact_id: str) -> Path:
        """Return the folder of an unfinished artifact; the files of an interrupted run are kept.

        What no run has written there, such as a pipe or a dangling link, is removed.
        """
        path = self.root / STAGING / artifact_id[:_SHORT]
        with writing(path):
            _remove_unless(stat.S_ISDIR, path)
            path.mkdir(parents=True, exist_ok=True)
            for name in ("work", "out"):
                _remove_unless(stat.S_ISDIR, path / name)
            for name in ("built.json", "log.txt"):
                _remove_unless(stat.S_ISREG, path / name)
            (path / "work").mkdir(exist_ok=True)
            for folder, _, names in os.walk(path / "work"):
                for name in names:
                    _remove_unless(stat.S_ISREG, Path(folder, name))
        return path

    def publish(
        self, staged: Path, manifest: Manifest, replaced: Artifact | None = None
    ) -> Artifact:
        """Write the manifest of ``staged`` and give it its final name, atomically.

        Raises:
            StorageError: the disk is full, or the store is not writable; nothing is published.
        """
        final = self.path_of(manifest.pass_.name, manifest.id)
        sealed = manifest.sealed()
        with writing(final):
            write_atomic(staged / MANIFEST, sealed.model_dump_json(indent=1).encode())
        return self.adopt(staged, sealed, replaced)

    def adopt(self, staged: Path, manifest: Manifest, replaced: Artifact | None = None) -> Artifact:
        """Give a complete artifact its final name, atomically; errors as ``publish``.

        Args:
            staged: the folder of the artifact.
            manifest: its manifest.
            replaced: the artifact that has the name until now.
        """
        final = self.path_of(manifest.pass_.name, manifest.id)
        with writing(final), self.current_session() as session:
            fsync_tree(staged)
            if replaced is None:
                staged.rename(final)  # fails if anything else is there
                fsync_directory(self.root)
            elif (old := replace_directory(staged, final, session.aside(final))) is not None:
                self._delete(old, session)
        return Artifact(final, manifest)

    def copy(self, artifact: Artifact) -> Artifact:
        """Copy an artifact of another store with all its files; the caller has locked its id.

        Raises:
            StorageError: as ``publish``.
            DamagedArtifactError: the copy does not match its manifest.
        """
        with self.current_session() as session:
            staged = session.temporary("copied")
            with writing(staged):
                for file in sorted(artifact.path.rglob("*")):
                    if file.is_file():
                        copy_file(file, staged / file.relative_to(artifact.path))
            copied = open_artifact(staged)  # its reports may have been replaced meanwhile
            verify(copied)
            return self.adopt(staged, copied.manifest)

    def replace_reports(self, artifact: Artifact, staged: Path, manifest: Manifest) -> Artifact:
        """Replace manifest and reports of an artifact at once; the model is unchanged.

        The new set becomes the artifact's folder ``.next`` in one rename, and from then on it is
        what readers use. Then its files replace the old ones, and ``.next`` leaves in one rename.
        So no kill leaves a mixture, and the model needs neither copies nor hard links, which
        readers of ONNX's external data refuse.

        Args:
            artifact: the artifact, locked by the caller.
            staged: the folder with the new reports.
            manifest: the new manifest.
        """
        sealed = manifest.sealed()
        self.settle(artifact.path)
        with writing(artifact.path):
            write_atomic(staged / MANIFEST, sealed.model_dump_json(indent=1).encode())
            fsync_tree(staged)
            staged.rename(artifact.path / NEXT)
            fsync_directory(artifact.path)
        self.settle(artifact.path)
        return Artifact(artifact.path, sealed)

    def settle(self, path: Path) -> None:
        """Give new reports of an artifact their final names, if a command was killed before.

        The caller has locked the artifact.
        """
        following = path / NEXT
        if not following.is_dir():
            return
        with writing(path), self.current_session() as session:
            if (following / MANIFEST).is_file():
                fresh = [name for name in list_files(following, "") if name != MANIFEST]
                stale = set(list_files(path, REPORTS)) | set(list_files(path, LOGS))
                for name in fresh:
                    write_atomic(path / name, (following / name).read_bytes())
                for name in sorted(stale.difference(fresh)):
                    (path / name).unlink(missing_ok=True)
                write_atomic(path / MANIFEST, (following / MANIFEST).read_bytes())
            self._delete(following, session)

    def set_aside(self, path: Path) -> Path:
        """Move a damaged artifact or record to ``.damaged`` for inspection; return its new path."""
        target = (
            self.root
            / DAMAGED
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
        return (self.root / STAGING / artifact_id[:_SHORT]).is_dir()

    def discard_staging(self, artifact_id: str) -> None:
        """Remove the staging folder of a run that was killed right after publishing."""
        path = self.root / STAGING / artifact_id[:_SHORT]
        if path.is_dir():
            self.discard(path)

    def remove(self, path: Path) -> None:
        """Remove an artifact or a leftover; it leaves its name in one rename."""
        with writing(path), self.current_session() as session:
            self._delete(path, session)

    def _delete(self, path: Path, session: Session) -> None:
        doomed = session.temporary("removed")
        path.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()

    def check_writable(self) -> None:
        """Check that this process may write to the store and lock its artifacts.

        In a store whose folder passes on its group (setgid), files are made for the group to
        write, whatever the umask: several users work on such a store.

        Raises:
            StorageError: The store is not writable, or this platform has no file locks.
        """
        require_file_locks()
        staging = self.root / STAGING
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self.root.stat().st_mode & stat.S_ISGID:
                os.umask(os.umask(0o077) & ~0o070)
            staging.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=staging):
                pass
        except OSError as error:
            raise storage_error(error, self.root) from error


def _remove_unless(expected: Callable[[int], bool], path: Path) -> None:
    """Remove what is at ``path``, unless there is nothing, or its type is the expected one."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not expected(mode):
            if stat.S_ISDIR(mode):
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked_artifact(path: Path) -> Iterator[Artifact]:
    """Hold the lock of a published artifact, all of whose files have their final names.

    An artifact outside of a store, such as a copy, has no lock.

    Raises:
        UsageError: the path holds no artifact.
        DamagedArtifactError: its manifest is damaged.
    """
    artifact = open_artifact(path)
    store = Store(path.absolute().parent)
    if not (store.root / LOCKS).is_dir():
        yield artifact
        return
    with store.session([artifact.id]), store.lock(artifact.id):
        store.settle(path.absolute())
        yield open_artifact(path)
