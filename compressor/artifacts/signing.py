"""Ed25519 signatures of manifests (RFC 8032).

A manifest holds the hash of every file, so its signature covers all of them. Keys are PEM files as
``openssl genpkey -algorithm ed25519`` writes them, or the same text in an environment variable. The
base64 signature is a file beside the manifest and not part of it: signing changes no id.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.artifacts.artifact import MANIFEST, open_artifact
from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.keyring import (
    Keyring,
    TrustedKey,
    load_keyring,
    require_cryptography,
)
from compressor.artifacts.store import locked_artifact
from compressor.errors import DamagedArtifactError, UsageError
from compressor.foreign_files.limits import SOURCE_TEXT
from compressor.foreign_files.opening import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = f"{MANIFEST}.sig"
PRIVATE_KEY = "AUTOGLM_COMPRESS_PRIVATE_KEY"
"""Environment variable: text of a private Ed25519 key in PEM; `sign` uses it without `--key`."""
_SIGNATURE_BYTES = 64


def sign(folder: Path, key: Path | None) -> Path:
    """Sign the manifest in ``folder``, and return the signature's file.

    Args:
        folder: an artifact.
        key: a private key file; None for the key in ``AUTOGLM_COMPRESS_PRIVATE_KEY``.

    Raises:
        UsageError: there is no key, or it is not an Ed25519 key.
        MissingExtraError: `cryptography` is not installed.
    """
    private = load_private_key(key)
    with locked_artifact(folder):
        with reading(folder / MANIFEST):
            signature = private.sign((folder / MANIFEST).read_bytes())
        with writing(folder):
            write_atomic(folder / SIGNATURE, base64.b64encode(signature) + b"\n")
    return folder / SIGNATURE


def check_signature(folder: Path, key: Path | None) -> TrustedKey:
    """Check the signature of the artifact in ``folder``; arguments and errors as ``check_signed``.

    Returns:
        The key that made it.
    """
    keyring = load_keyring(key)
    signature = read_signature(folder)
    with reading(folder):
        content = open_artifact(folder).file(MANIFEST).read_bytes()
    return check_signed(content, signature, keyring, folder)


def check_signed(
    manifest: bytes, signature: bytes | None, keyring: Keyring, subject: Path
) -> TrustedKey:
    """Check the signature of a manifest, and return the key that made it.

    Args:
        manifest: the content of the manifest.
        signature: its 64 bytes; None if there is none.
        keyring: the keys that are trusted.
        subject: the artifact or the archive, for messages.

    Raises:
        DamagedArtifactError: the artifact is not signed, not with one of these keys, with a revoked
            one, or has changed since.
    """
    if signature is None:
        raise DamagedArtifactError(
            f"{subject} is not signed",
            remedy="`autoglm-compress sign` signs artifacts and packages",
        )
    signer = keyring.find_signer(signature, manifest)
    if signer is None:
        raise DamagedArtifactError(
            f"{subject}: the signature does not match the manifest",
            remedy="it was signed with another key, or changed since: get it again, or sign it "
            "again (measuring an artifact changes its manifest)",
        )
    if signer.revoked is not None:
        raise DamagedArtifactError(
            f"{subject} is signed with the key {signer.name}, which is revoked: {signer.revoked}",
            remedy="get it with a signature of another key, or build it again",
        )
    return signer


def read_signature(folder: Path) -> bytes | None:
    """Return the 64 bytes of the signature in ``folder``, None if there is none.

    Raises:
        DamagedArtifactError: the file holds something else.
    """
    file = folder / SIGNATURE
    if not file.exists() and not file.is_symlink():
        return None
    return parse_signature(read_bytes(file, SOURCE_TEXT, DamagedArtifactError, None), file)


def parse_signature(text: bytes, file: Path) -> bytes:
    """Return the 64 bytes of a signature; ``file`` is its place, for messages.

    Raises:
        DamagedArtifactError: the text is not a signature in base64.
    """
    try:
        signature = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        signature = b""
    if len(signature) != _SIGNATURE_BYTES:
        raise DamagedArtifactError(
            f"{file} holds no signature, so it does not match the manifest",
            remedy="remove it, or sign the artifact again",
        )
    return signature


def load_private_key(path: Path | None) -> Ed25519PrivateKey:
    """Return the private key of a file; None for that in ``AUTOGLM_COMPRESS_PRIVATE_KEY``.

    Raises:
        UsageError: there is no key, or it is not an Ed25519 key.
        MissingExtraError: `cryptography` is not installed.
    """
    pem = _pem(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def _pem(path: Path | None) -> bytes:
    require_cryptography()
    if path is not None:
        return read_bytes(path, SOURCE_TEXT, UsageError, None)
    if PRIVATE_KEY in os.environ:
        return os.environ[PRIVATE_KEY].encode()
    raise UsageError(
        "there is no private key",
        remedy=f"give --key, or set {PRIVATE_KEY} to the text of a PEM file",
    )


def _no_key(path: Path | None) -> UsageError:
    return UsageError(
        f"{path or PRIVATE_KEY} is not a private Ed25519 key in PEM without a password",
        remedy="create one: openssl genpkey -algorithm ed25519 -out key.pem",
    )
