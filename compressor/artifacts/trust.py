"""Whose artifacts are used: built here, or imported and signed.

An artifact's hashes show that it is intact, not who made it: whoever changes a model can write a
manifest that fits, under any id. An imported artifact is marked so by a file beside its manifest,
and a policy can demand that it be signed. What a store has built itself needs no signature.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.signing import check_signature
from compressor.errors import DamagedArtifactError
from compressor.foreign_files.json_files import read_json_record

IMPORTED = "imported.json"
REQUIRE_SIGNATURES = "AUTOGLM_COMPRESS_REQUIRE_SIGNATURES"
"""Environment variable: `1` to refuse imported artifacts, and artifacts and baselines of other
stores, that are not signed, as `require_signatures: true` in a pipeline."""


class Import(BaseModel):
    """Origin of an imported artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    imported: str
    """UTC, ISO 8601."""
    signer: str | None = None
    """Name or fingerprint of the key that signed it; None if no signature was checked."""

    @classmethod
    def now(cls, signer: str | None) -> Import:
        """Return the record of an import at this moment."""
        moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(imported=moment, signer=signer)

    def __str__(self) -> str:
        signed = f"signed by {self.signer}" if self.signer else "its signature was not checked"
        return f"imported on {self.imported[:10]}, {signed}"


def import_of(artifact: Artifact) -> Import | None:
    """Return the origin of an imported artifact, None for one that was built where it is.

    Raises:
        DamagedArtifactError: the record cannot be read.
    """
    file = artifact.path / IMPORTED
    if not file.exists() and not file.is_symlink():
        return None
    return read_json_record(file, Import, DamagedArtifactError, remedy="restore the archive again")


def signatures_required(configured: bool = False) -> bool:
    """Return True if a pipeline (``configured``) or the environment demands signatures."""
    return configured or os.environ.get(REQUIRE_SIGNATURES, "") not in {"", "0"}


def require_trust(artifact: Artifact, own_store: Path | None) -> None:
    """Check that an artifact was built in ``own_store``, or is signed with a trusted key.

    Raises:
        UsageError: there is no public key to check with.
        DamagedArtifactError: it is not signed, or not with such a key.
    """
    is_own = own_store is not None and artifact.path.resolve().parent == own_store.resolve()
    if not is_own or import_of(artifact) is not None:
        check_signature(artifact.path, None)
