"""Archive an artifact as one ``.tar.zst`` file, and restore it; archives are untrusted input.

An archive holds one artifact: its manifest first, a signature if there is one, then exactly the
files that the manifest lists. Equal artifacts give equal archives. Restoring refuses members that
the manifest does not list, links, devices, paths outside the artifact, files of another size or
hash, duplicates and missing files, before anything gets its final name. Unpacked bytes are counted,
so that no header and no file takes more memory or disk than the manifest states.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.manifest import FileEntry, Manifest
from compressor.artifacts.signing import SIGNATURE, check_signature
from compressor.artifacts.store import MANIFEST, MODEL, Artifact, Store, open_artifact, verify
from compressor.errors import DamagedArtifactError, MissingExtraError, StorageError, UsageError

_LEVEL = 10
_WINDOW_BYTES = 1 << 27
_LARGEST_MANIFEST_BYTES = 1 << 26
_LARGEST_SIGNATURE_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_HEADERS_BYTES = 1 << 20  # before a member, with what is read ahead
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ID = re.compile(r"[0-9a-f]{64}")
_REPORTS = ("reports/", "logs/")
_PAGES = frozenset({"report.md", "report.html"})


def archive_artifact(artifact: Artifact, target: Path) -> int:
    """Verify an artifact and write it to the archive ``target``; return the archive's bytes.

    Raises:
        UsageError: ``target`` exists.
        DamagedArtifactError: a file differs from the manifest.
        MissingExtraError: `zstandard` is not installed.
    """
    zstandard = _zstandard()
    if target.exists():
        raise UsageError(f"{target} already exists", remedy="remove it, or choose another name")
    verify(artifact)
    manifest = artifact.manifest
    names = [MANIFEST, *([SIGNATURE] if (artifact.path / SIGNATURE).is_file() else [])]
    names += sorted({*manifest.files, *manifest.reports})
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                partial.open("wb") as raw,
                zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name in names:
                    _add(tar, name, artifact.path / name)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target.stat().st_size


def restore_artifact(
    archive: Path, store: Store, key: Path | None, *, signed: bool
) -> tuple[Artifact, bool]:
    """Restore an archive into a store; return the artifact, and True if it is new there.

    Args:
        archive: a file that ``archive_artifact`` wrote.
        store: the store to restore into.
        key: a public key file; None for the key in the environment.
        signed: True to require a valid signature.

    Raises:
        UsageError: there is no such file.
        DamagedArtifactError: the file is not such an archive, or does not match its manifest.
        StorageError: the files that the manifest lists do not fit on the disk.
        MissingExtraError: `zstandard` is not installed.
    """
    if not archive.is_file():
        raise UsageError(
            f"{archive} is not a file", remedy="name a .tar.zst file that `archive` wrote"
        )
    store.check_writable()
    with _members(archive) as members:
        first = next(members, None)
        if first is None or first[0].name != MANIFEST:
            raise _refused(archive, f"its first member is not {MANIFEST}")
        content = _read(archive, *first, _LARGEST_MANIFEST_BYTES)
        manifest = _manifest(archive, content)
        listed = {**manifest.files, **manifest.reports}
        with store.lock(manifest.id):
            if (existing := store.find(manifest.pass_.name, manifest.id)) is not None:
                verify(existing)
                return existing, False
            _check_room(listed, store)
            staging = store.staging(f"import{manifest.id}")
            try:
                staged = staging / "out"
                _unpack(archive, members, listed, staged)
                with writing(staged):
                    (staged / MANIFEST).write_bytes(content)
                if signed:
                    check_signature(staged, key)
                return store.adopt(staged, open_artifact(staged).manifest), True
            finally:
                store.discard(staging)


def _unpack(
    archive: Path, members: Iterator[tuple[Any, IO[bytes]]], listed: dict[str, FileEntry], out: Path
) -> None:
    """Write the listed members, checking each; all of them must be present."""
    missing = dict(listed)
    with writing(out):
        shutil.rmtree(out, ignore_errors=True)
        (out / MODEL).mkdir(parents=True)
    for info, source in members:
        if info.name == SIGNATURE and not (out / SIGNATURE).exists():
            with writing(out):
                (out / SIGNATURE).write_bytes(
                    _read(archive, info, source, _LARGEST_SIGNATURE_BYTES)
                )
            continue
        entry = missing.pop(info.name, None)
        if entry is None:
            raise _refused(archive, f"{info.name!r} is not in its manifest, or is a duplicate")
        if info.size != entry.bytes:
            raise _refused(archive, f"{info.name} has {info.size} bytes, {entry.bytes} expected")
        digest = hashlib.sha256()
        with writing(out):
            (out / info.name).parent.mkdir(parents=True, exist_ok=True)
            with (out / info.name).open("xb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
        if digest.hexdigest() != entry.sha256:
            raise _refused(archive, f"{info.name}: its content has changed (sha256 differs)")
    if missing:
        raise _refused(archive, f"it lacks {', '.join(sorted(missing))}")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    """Iterate over the members of an archive in order; all must be regular files."""
    zstandard = _zstandard()

    def plain(
        tar: tarfile.TarFile, counted: _Counted
    ) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
        while True:
            counted.left = _HEADERS_BYTES
            if (info := tar.next()) is None:
                return
            source = tar.extractfile(info) if info.isreg() and not info.issparse() else None
            if source is None:
                raise _refused(
                    archive, f"{info.name!r} is not a regular file but a link, a folder or a device"
                )
            counted.left += info.size
            yield info, source

    with reading(archive), archive.open("rb") as raw:
        try:
            with zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).stream_reader(
                raw
            ) as unpacked:
                counted = _Counted(unpacked)
                with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]
                    yield plain(tar, counted)
        except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
            raise _refused(
                archive, f"it is damaged, or not a .tar.zst file ({str(error).splitlines()[0]})"
            ) from error


class _Counted:
    """A stream limited to ``left`` bytes: a header may claim any length and is read into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.left = stream, _HEADERS_BYTES

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        content = self._stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError("a header is too large")
        return content


def _read(archive: Path, info: tarfile.TarInfo, source: IO[bytes], most: int) -> bytes:
    if info.size > most:
        raise _refused(archive, f"{info.name} has {info.size} bytes, {most} at most expected")
    return source.read()


def _manifest(archive: Path, content: bytes) -> Manifest:
    """Parse a manifest, and check its digest and that its paths stay inside the artifact."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValueError as error:
        raise _refused(
            archive, f"{MANIFEST} cannot be parsed: {str(error).splitlines()[0]}"
        ) from error
    if manifest.digest != manifest.content_digest():
        raise _refused(archive, f"{MANIFEST} does not match its own digest")
    if not _NAME.fullmatch(manifest.pass_.name) or not _ID.fullmatch(manifest.id):
        raise _refused(archive, f"{MANIFEST} has an invalid pass name or id")
    wrong = [
        name for name in manifest.files if not name.startswith(f"{MODEL}/") or not _is_inside(name)
    ]
    wrong += [
        name
        for name in manifest.reports
        if not (name.startswith(_REPORTS) or name in _PAGES) or not _is_inside(name)
    ]
    if wrong or any(
        entry.bytes < 0 for entry in (*manifest.files.values(), *manifest.reports.values())
    ):
        raise _refused(
            archive,
            f"{MANIFEST} lists paths that artifacts never have: {', '.join(map(repr, wrong))}",
        )
    return manifest


def _is_inside(name: str) -> bool:
    """Return True if a path stays inside its root on every platform and is in normal form."""
    path = PurePosixPath(name)
    if any(character in "\\:" or ord(character) < 32 for character in name):
        return False
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name


def _check_room(listed: dict[str, FileEntry], store: Store) -> None:
    needed = sum(entry.bytes for entry in listed.values())
    free = shutil.disk_usage(store.root).free
    if needed > free:
        raise StorageError(
            f"the artifact has {needed / 1e9:.2f} GB; {store.root} has {free / 1e9:.2f} GB free",
            remedy="free some space (`autoglm-compress gc`), or choose another --output-dir",
        )


def _add(tar: tarfile.TarFile, name: str, file: Path) -> None:
    """Add a file without owner, mode and time."""
    info = tarfile.TarInfo(name)
    info.size = file.stat().st_size
    info.mode = 0o644
    with file.open("rb") as source:
        tar.addfile(info, source)


def _refused(archive: Path, why: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        f"{archive} is refused: {why}", remedy="copy it again from a trusted source"
    )


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "an archive", "provenance") from error
    return zstandard
