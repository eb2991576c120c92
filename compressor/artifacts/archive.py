"""Archive an artifact as one ``.tar.zst`` file, and restore it; archives are untrusted input.

An archive holds one artifact: its manifest first, a signature if there is one, then exactly the
files that the manifest lists. Equal artifacts give equal archives. Restoring refuses members that
the manifest does not list, links, devices, paths outside the artifact, files of another size or
hash, duplicates and missing files, before anything gets its final name. Unpacked bytes are counted,
so that no header and no file takes more memory or disk than the manifest states.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

from compressor.artifacts.artifact import (
    MANIFEST,
    MODEL,
    Artifact,
    open_artifact,
    verified_artifact,
    was_replaced,
)
from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.files import atomic_file
from compressor.artifacts.fingerprint import report_read
from compressor.artifacts.keyring import has_public_key, load_keyring
from compressor.artifacts.manifest import FileEntry, Manifest
from compressor.artifacts.signing import SIGNATURE, check_signed, parse_signature
from compressor.artifacts.store import Store
from compressor.artifacts.trust import IMPORTED, Import, signatures_required
from compressor.errors import DamagedArtifactError, MissingExtraError, StorageError, UsageError
from compressor.foreign_files.opening import open_file

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


def archive_artifact(path: Path, target: Path) -> int:
    """Verify an artifact and write it to the archive ``target``; return the archive's bytes.

    The bytes that are written are those that the manifest states, also if the artifact is measured
    again or removed meanwhile: then nothing is written.

    Raises:
        UsageError: ``path`` holds no artifact, or ``target`` exists.
        DamagedArtifactError: a file differs from the manifest.
        MissingExtraError: `zstandard` is not installed.
    """
    zstandard = _zstandard()
    if target.exists():
        raise UsageError(f"{target} already exists", remedy="remove it, or choose another name")
    while True:
        artifact = verified_artifact(path)
        try:
            _write(artifact, target, zstandard)
        except (DamagedArtifactError, StorageError):
            if not was_replaced(artifact):
                raise
        else:
            return target.stat().st_size


def _write(artifact: Artifact, target: Path, zstandard: Any) -> None:
    listed = {**artifact.manifest.files, **artifact.manifest.reports}
    with (
        writing(target),
        atomic_file(target) as raw,
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in (MANIFEST, *_signature(artifact), *sorted(listed)):
            _add(tar, name, artifact.file(name), listed.get(name))


def _signature(artifact: Artifact) -> list[str]:
    return [SIGNATURE] if artifact.file(SIGNATURE).is_file() else []


@dataclass(frozen=True, slots=True)
class Demands:
    """Conditions on an archive beside its hashes.

    Attributes:
        signed: True to require a valid signature.
        key: a public key file or a keyring; None for the one in the environment.
        check: returns what contradicts a manifest, None if nothing does.
    """

    signed: bool = False
    key: Path | None = None
    check: Callable[[Manifest], str | None] = lambda _: None


def restore_artifact(archive: Path, store: Store, demands: Demands) -> tuple[Artifact, bool]:
    """Restore an archive into a store; return the artifact, and True if it is new there.

    A signature is checked whenever there is a key to check it with.

    Args:
        archive: a file that ``archive_artifact`` wrote.
        store: the store to restore into.
        demands: conditions on the archive.

    Raises:
        UsageError: there is no such file, or no key although a signature is required.
        DamagedArtifactError: the file is not such an archive, does not match its manifest or the
            demands, or has other files than the artifact of this id in the store.
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
        if (problem := demands.check(manifest)) is not None:
            raise _refused(archive, problem)
        signature, others = _split_signature(archive, members)
        signer = _check_signer(archive, content, signature, demands)
        with store.session([manifest.id]) as session, store.lock(manifest.id):
            if (existing := store.find(manifest.pass_.name, manifest.id)) is not None:
                if existing.manifest.files != manifest.files:
                    raise _refused(archive, f"{existing.path} has the same id and other files")
                return verified_artifact(existing.path), False
            listed = {**manifest.files, **manifest.reports}
            _check_room(listed, store)
            staged = session.temporary("restored")
            _unpack(archive, others, listed, staged)
            with writing(staged):
                (staged / MANIFEST).write_bytes(content)
                (staged / IMPORTED).write_text(Import.now(signer).model_dump_json(indent=1))
                if signature is not None:
                    (staged / SIGNATURE).write_bytes(base64.b64encode(signature) + b"\n")
            return store.adopt(staged, open_artifact(staged).manifest), True


def _split_signature(
    archive: Path, members: Iterator[tuple[Any, IO[bytes]]]
) -> tuple[bytes | None, Iterator[tuple[Any, IO[bytes]]]]:
    """Return the signature, which is the second member if there is one, and the other members."""
    second = next(members, None)
    if second is None:
        return None, members
    if second[0].name != SIGNATURE:
        return None, chain([second], members)
    text = _read(archive, *second, _LARGEST_SIGNATURE_BYTES)
    return parse_signature(text, archive / SIGNATURE), members


def _check_signer(
    archive: Path, manifest: bytes, signature: bytes | None, demands: Demands
) -> str | None:
    """Return the name of the key that signed an archive; None if no signature was checked."""
    required = demands.signed or demands.key is not None or signatures_required()
    if not required and (signature is None or not has_public_key()):
        return None
    return check_signed(manifest, signature, load_keyring(demands.key), archive).name


def _unpack(
    archive: Path, members: Iterator[tuple[Any, IO[bytes]]], listed: dict[str, FileEntry], out: Path
) -> None:
    """Write the listed members, checking each; all of them must be present."""
    missing = dict(listed)
    with writing(out):
        (out / MODEL).mkdir(parents=True)
    for info, source in members:
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
                    report_read(out / info.name, target.tell(), entry.bytes)
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

    with open_file(archive, UsageError) as raw:
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


def _add(tar: tarfile.TarFile, name: str, file: Path, entry: FileEntry | None) -> None:
    """Add a file without owner, mode and time; what is listed must be what the manifest states."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    with reading(file), file.open("rb") as source:
        info.size = os.fstat(source.fileno()).st_size
        hashed = _Hashed(source)
        tar.addfile(info, hashed)  # type: ignore[arg-type]
    if entry is not None and entry.sha256 != hashed.digest.hexdigest():
        raise DamagedArtifactError(f"{file} is damaged: its content has changed (sha256 differs)")


class _Hashed:
    """A stream whose content is hashed while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        content = self._stream.read(size)
        self.digest.update(content)
        return content


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
