"""Signatures of packages, with the keys that sign artifacts."""

from __future__ import annotations

from pathlib import Path

from compressor.artifacts.artifact import MODEL, is_artifact, verified_artifact
from compressor.artifacts.keyring import has_public_key, load_keyring
from compressor.artifacts.signing import check_signature, check_signed, load_private_key
from compressor.artifacts.trust import signatures_required
from compressor.errors import UsageError
from compressor.runtimes.delta.package import FILE, Package, is_package, read_package, write_signed


def sign_package(path: Path, key: Path | None, target: Path | None) -> Path:
    """Write a signed package, and return its file.

    Args:
        path: a package, or a `delta` artifact.
        key: a private key file; None for the key in the environment.
        target: the file to write; None to sign the package in its place.

    Raises:
        UsageError: there is no key or no package; or it lies in an artifact, whose files stay as
            they are.
        DamagedArtifactError: the package is damaged.
        StorageError: the disk is full, or the folder cannot be written.
    """
    package = open_package(path)
    if target is None and is_in_artifact(package.file):
        raise UsageError(
            f"{package.file} is a file of an artifact, which its manifest hashes",
            remedy="give --out with the name of the signed copy",
        )
    signature = load_private_key(key).sign(package.signed)
    write_signed(package, signature, target or package.file)
    return target or package.file


def open_package(path: Path) -> Package:
    """Read a package: a file, or the one in a `delta` artifact or its model folder.

    Raises:
        UsageError: there is none.
        DamagedArtifactError: it is damaged.
    """
    if is_artifact(path):
        path = verified_artifact(path).path / MODEL
    file = path / FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UsageError(
            f"{path} holds no update package: it has no {FILE}",
            remedy="name the artifact of a `delta` step, or the file of a package",
        )
    return read_package(file)


def check_package_signature(
    place: Path, package: Package, key: Path | None, *, signed: bool
) -> str | None:
    """Return the name of the key that signed a package; None if no signature was checked.

    The signature is in the package, or for an artifact that of its manifest. It is checked whenever
    there is a key to check it with.

    Raises:
        UsageError: a signature is required, and there is no key.
        DamagedArtifactError: there is none, or not one of a trusted key.
    """
    required = signed or key is not None or signatures_required()
    if package.signature is None and is_artifact(place) and required:
        return check_signature(place, key).name
    if not required and (package.signature is None or not has_public_key()):
        return None
    return check_signed(package.signed, package.signature, load_keyring(key), package.file).name


def is_in_artifact(file: Path) -> bool:
    """Return True for a package in the model folder of an artifact."""
    return is_package(file) and file.parent.name == MODEL and is_artifact(file.parent.parent)
