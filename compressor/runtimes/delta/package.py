"""One file that turns a model into another: header, manifest, payload, signature.

Layout::

    8 bytes   AGLMDLT1
    8 bytes   M, length of the manifest, little-endian
    8 bytes   P, length of the payload, little-endian
    M bytes   the manifest, JSON in UTF-8
    P bytes   the payload
    64 bytes  Ed25519 signature of the 24 + M bytes before the payload; or nothing

The manifest holds the sha256 of the payload, so the signature covers all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import atomic_file
from compressor.artifacts.fingerprint import canonical_json, digest_json
from compressor.errors import DamagedArtifactError, UsageError
from compressor.foreign_files.json_files import parse_record
from compressor.foreign_files.opening import open_file
from compressor.runtimes.delta.manifest import DeltaManifest

MAGIC = b"AGLMDLT1"
SUFFIX = ".aglmdelta"
FILE = f"update{SUFFIX}"
"""Name of the package in an artifact."""
SIGNATURE_BYTES = 64
_HEADER_BYTES = 24
_MOST_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
COPY_AGAIN = "get the package again from where it comes from"


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose header and manifest have been read."""

    file: Path
    manifest: DeltaManifest
    signed: bytes
    """The bytes that the signature covers: header and manifest."""
    signature: bytes | None

    @property
    def id(self) -> str:
        """sha256 of the bytes that the signature covers."""
        return hashlib.sha256(self.signed).hexdigest()

    @contextmanager
    def payload(self) -> Iterator[IO[bytes]]:
        """Open the file at the start of the payload, which is checked first.

        Raises:
            DamagedArtifactError: the payload is not that of the manifest.
        """
        with open_file(self.file, DamagedArtifactError) as handle:
            handle.seek(len(self.signed))
            digest, left = hashlib.sha256(), self.manifest.payload.bytes
            while left and (chunk := handle.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
            if left or digest.hexdigest() != self.manifest.payload.sha256:
                raise refused(self.file, "its payload has changed (sha256 differs)")
            handle.seek(len(self.signed))
            yield handle


def refused(file: Path, why: str) -> DamagedArtifactError:
    """Return the error for a package that is damaged, or made to do damage."""
    return DamagedArtifactError(f"{file} is refused: {why}", remedy=COPY_AGAIN)


def is_package(file: Path) -> bool:
    """Return True for a file that starts as packages do."""
    try:
        with open_file(file, UsageError) as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except (UsageError, OSError):
        return False


def read_package(file: Path) -> Package:
    """Read the header, the manifest and the signature of a package.

    Raises:
        UsageError: there is no such file.
        DamagedArtifactError: it is no package, truncated, or its manifest is not valid.
    """
    with open_file(file, UsageError) as handle:
        size = os.fstat(handle.fileno()).st_size
        header = handle.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(MAGIC):
            raise refused(file, f"it does not start as a package does ({MAGIC.decode()})")
        manifest_bytes = int.from_bytes(header[8:16], "little")
        payload_bytes = int.from_bytes(header[16:24], "little")
        if manifest_bytes > _MOST_MANIFEST_BYTES:
            raise refused(file, f"its manifest has {manifest_bytes} bytes, too many to be read")
        unsigned = _HEADER_BYTES + manifest_bytes + payload_bytes
        if size not in {unsigned, unsigned + SIGNATURE_BYTES}:
            raise refused(
                file, f"it has {size} bytes, and its header promises {unsigned} before a signature"
            )
        content = handle.read(manifest_bytes)
        handle.seek(unsigned)
        signature = handle.read(SIGNATURE_BYTES) or None
    where = f"the manifest of {file}"
    manifest = parse_record(content, DeltaManifest, where, DamagedArtifactError, COPY_AGAIN)
    if manifest.payload.bytes != payload_bytes:
        raise refused(file, "header and manifest state two lengths of the payload")
    if canonical_json(manifest.model_dump(mode="json")).encode() != content:
        raise refused(file, "its manifest is not in canonical form")
    return Package(file, manifest, header + content, signature)


def write_package(file: Path, manifest: DeltaManifest, payload: Path) -> None:
    """Write an unsigned package; equal arguments give equal bytes.

    Args:
        file: the package.
        manifest: its manifest.
        payload: a file with the payload.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    content = canonical_json(manifest.model_dump(mode="json")).encode()
    lengths = (len(content), manifest.payload.bytes)
    header = MAGIC + b"".join(length.to_bytes(8, "little") for length in lengths)
    with writing(file), atomic_file(file) as target, payload.open("rb") as source:
        target.write(header + content)
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)


def write_signed(package: Package, signature: bytes, target: Path) -> None:
    """Write a package with a signature in place of the one that it may have.

    Raises:
        DamagedArtifactError: the payload is not that of the manifest.
        StorageError: the disk is full, or the folder cannot be written.
    """
    with package.payload() as source, writing(target), atomic_file(target) as out:
        out.write(package.signed)
        left = package.manifest.payload.bytes
        while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
            out.write(chunk)
            left -= len(chunk)
        out.write(signature)


def digest_of_files(digests: dict[str, str]) -> str:
    """Return the digest of a model from the sha256 of each of its files by name."""
    return digest_json(digests)
