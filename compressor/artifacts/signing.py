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

from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.store import MANIFEST
from compressor.errors import DamagedArtifactError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = f"{MANIFEST}.sig"
PRIVATE_KEY = "AUTOGLM_COMPRESS_PRIVATE_KEY"
PUBLIC_KEY = "AUTOGLM_COMPRESS_PUBLIC_KEY"
"""Environment variables that hold a key as PEM text."""
_LARGEST_SIGNATURE_BYTES = 1024


def sign(folder: Path, key: Path | None) -> Path:
    """Sign the manifest in ``folder``, and return the signature's file.

    Args:
        folder: an artifact.
        key: a private key file; None for the key in ``AUTOGLM_COMPRESS_PRIVATE_KEY``.

    Raises:
        UsageError: there is no key, or it is not an Ed25519 key.
        MissingExtraError: `cryptography` is not installed.
    """
    private = _private(key)
    with reading(folder / MANIFEST):
        signature = private.sign((folder / MANIFEST).read_bytes())
    with writing(folder):
        write_atomic(folder / SIGNATURE, base64.b64encode(signature) + b"\n")
    return folder / SIGNATURE


def check_signature(folder: Path, key: Path | None) -> None:
    """Check the signature in ``folder`` against its manifest.

    Args:
        folder: an artifact, or one that is being unpacked.
        key: a public key file; None for the key in ``AUTOGLM_COMPRESS_PUBLIC_KEY``.

    Raises:
        UsageError: there is no key, or it is not an Ed25519 key.
        DamagedArtifactError: the artifact is not signed, not with this key, or has changed since.
        MissingExtraError: `cryptography` is not installed.
    """
    public = _public(key)
    from cryptography.exceptions import InvalidSignature

    file = folder / SIGNATURE
    if not file.is_file():
        raise DamagedArtifactError(
            f"{folder} is not signed", remedy="`autoglm-compress sign` signs an artifact"
        )
    with reading(folder):
        text, content = file.read_bytes(), (folder / MANIFEST).read_bytes()
    try:
        if len(text) > _LARGEST_SIGNATURE_BYTES:
            raise InvalidSignature
        public.verify(base64.b64decode(text.strip(), validate=True), content)
    except (InvalidSignature, binascii.Error) as error:
        raise DamagedArtifactError(
            f"{folder}: the signature does not match the manifest",
            remedy="it was signed with another key, or changed since; "
            "measuring again changes the manifest too: sign it again",
        ) from error


def _private(path: Path | None) -> Ed25519PrivateKey:
    pem = _pem(path, PRIVATE_KEY, "private")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, PRIVATE_KEY, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, PRIVATE_KEY, "private")
    return key


def _public(path: Path | None) -> Ed25519PublicKey:
    pem = _pem(path, PUBLIC_KEY, "public")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise _no_key(path, PUBLIC_KEY, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, PUBLIC_KEY, "public")
    return key


def _pem(path: Path | None, variable: str, which: str) -> bytes:
    try:
        import cryptography  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise MissingExtraError("cryptography", "signing", "provenance") from error
    if path is not None:
        with reading(path):
            return path.read_bytes()
    if variable in os.environ:
        return os.environ[variable].encode()
    raise UsageError(
        f"there is no {which} key",
        remedy=f"give --key, or set {variable} to the text of a PEM file",
    )


def _no_key(path: Path | None, variable: str, which: str) -> UsageError:
    generate = "openssl genpkey -algorithm ed25519 -out key.pem"
    remedy = generate if which == "private" else "openssl pkey -in key.pem -pubout -out key.pub"
    return UsageError(
        f"{path or variable} is not a {which} Ed25519 key in PEM without a password",
        remedy=f"create one: {remedy}",
    )
