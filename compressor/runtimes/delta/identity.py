"""The identity of a base: digests of the files that its model uses, and of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from compressor.artifacts.artifact import is_artifact, open_artifact
from compressor.artifacts.fingerprint import digest_file
from compressor.models.checkpoint.companions import TOKENIZER_PATTERNS
from compressor.runtimes.delta.manifest import BaseModelIdentity
from compressor.runtimes.delta.package import digest_of_files
from compressor.runtimes.formats import StoredModel, recognize


@dataclass(frozen=True, slots=True)
class Base:
    """A model that a package applies to."""

    path: Path
    files: Mapping[str, Path]
    """The files that the model uses, by name."""
    digest: str
    tokenizer: str | None
    format: str
    artifact: str | None

    def record(self, name: str) -> BaseModelIdentity:
        """Return the record of a manifest."""
        return BaseModelIdentity(
            artifact=self.artifact, digest=self.digest, name=name, tokenizer=self.tokenizer
        )


def open_base(path: Path) -> Base:
    """Hash the model of an artifact, or at any other path.

    Raises:
        ModelError: there is no model.
        DamagedArtifactError: the artifact's manifest is damaged.
        StorageError: a file cannot be read.
    """
    if is_artifact(path):
        artifact = open_artifact(path)
        return hash_base(StoredModel.of(artifact), artifact.id)
    return hash_base(recognize(path), None)


def hash_base(stored: StoredModel, artifact: str | None) -> Base:
    """Return the identity of a stored model; errors as ``open_base``."""
    files = stored.format.files(stored.path)
    digests = {name: digest_file(file) for name, file in files.items()}
    tokenizer = {name: digest for name, digest in digests.items() if _is_tokenizer(name)}
    return Base(
        stored.path,
        files,
        digest_of_files(digests),
        digest_of_files(tokenizer) if tokenizer else None,
        stored.format.name,
        artifact,
    )


def _is_tokenizer(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_PATTERNS)
