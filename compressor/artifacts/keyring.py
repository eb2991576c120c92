"""The public keys whose signatures are trusted: a PEM file, or a keyring that can revoke keys.

A PEM file holds one public key or several, as after a rotation: signatures of each are accepted. A
keyring is a YAML file that also names keys and revokes them::

    keys:
      - {name: release-2026, key: "-----BEGIN PUBLIC KEY-----…"}
      - {name: laptop, key: "-----BEGIN PUBLIC KEY-----…", revoked: it was stolen in May}
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.config.document import Document, parse_document
from compressor.config.record import Record
from compressor.config.validation import validate
from compressor.errors import ConfigError, MissingExtraError, Problem, UsageError
from compressor.foreign_files.limits import PIPELINE
from compressor.foreign_files.opening import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PUBLIC_KEY = "AUTOGLM_COMPRESS_PUBLIC_KEY"
"""Environment variable: text of a public Ed25519 key in PEM, or of a keyring, with which signatures
are checked; `--key` of `verify` and `restore` replaces it."""
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)
_FINGERPRINT_DIGITS = 16


class _KeyEntry(Record):
    name: str
    key: str
    """Public Ed25519 key as PEM text."""
    revoked: str | None = None
    """Reason why signatures of this key are refused."""


class _KeyringFile(Record):
    keys: tuple[_KeyEntry, ...]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key of a keyring."""

    name: str
    """Its name in the keyring, or its fingerprint."""
    public: Ed25519PublicKey
    revoked: str | None = None
    """Reason why its signatures are refused."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys whose signatures are trusted, and those that were revoked."""

    keys: tuple[TrustedKey, ...]

    def find_signer(self, signature: bytes, content: bytes) -> TrustedKey | None:
        """Return the key that signed ``content``, revoked ones too; None if it is none of these."""
        from cryptography.exceptions import InvalidSignature

        for key in self.keys:
            try:
                key.public.verify(signature, content)
            except InvalidSignature:
                continue
            return key
        return None


def has_public_key() -> bool:
    """Return True if the environment names keys."""
    return bool(os.environ.get(PUBLIC_KEY))


def load_keyring(path: Path | None) -> Keyring:
    """Return the keys of a file, or of the environment.

    Args:
        path: a PEM file or a keyring; None for the text in ``AUTOGLM_COMPRESS_PUBLIC_KEY``.

    Raises:
        UsageError: there is none, or it holds something else than public Ed25519 keys.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography()
    place = str(path or PUBLIC_KEY)
    if path is not None:
        content = read_bytes(path, PIPELINE, UsageError, None)
    elif has_public_key():
        content = os.environ[PUBLIC_KEY].encode()
    else:
        raise UsageError(
            "there is no public key",
            remedy=f"give --key, or set {PUBLIC_KEY} to the text of a PEM file or of a keyring",
        )
    if content.lstrip().startswith(b"-----BEGIN"):
        keys = tuple(_keys_in_pem(content.decode("ascii", errors="replace"), place))
    else:
        keys = tuple(_keys_in_keyring(parse_document(content, path), place))
    return Keyring(keys)


def fingerprint(public: Ed25519PublicKey) -> str:
    """Return the start of the sha256 of a public key, in hexadecimal."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:_FINGERPRINT_DIGITS]


def require_cryptography() -> None:
    """Check that `cryptography` is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import cryptography  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise MissingExtraError("cryptography", "signing", "provenance") from error


def _keys_in_pem(text: str, place: str) -> Iterator[TrustedKey]:
    blocks: list[str] = _PEM.findall(text)
    for block in blocks or [text]:
        public = _public_key(block, place)
        yield TrustedKey(fingerprint(public), public)


def _keys_in_keyring(document: Document, place: str) -> Iterator[TrustedKey]:
    keyring, problems = validate(_KeyringFile, document.tree, document)
    if keyring is None or problems:
        raise ConfigError(problems)
    names = [entry.name for entry in keyring.keys]
    for index, entry in enumerate(keyring.keys):
        if names.index(entry.name) != index:
            what = f"the name {entry.name!r} is used twice"
            problems.append(document.problem(("keys", index, "name"), what))
        try:
            public = _public_key(entry.key, place)
        except UsageError as error:
            what = "is not a public Ed25519 key in PEM"
            problems.append(document.problem(("keys", index, "key"), what, remedy=error.remedy))
            continue
        yield TrustedKey(entry.name, public, entry.revoked)
    if not keyring.keys:
        problems.append(Problem("keys", "there is no key", None, None, document.file))
    if problems:
        raise ConfigError(problems)


def _public_key(pem: str, place: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{place} is not a public Ed25519 key in PEM",
            remedy="create one: openssl pkey -in key.pem -pubout -out key.pub",
        )
    return key
