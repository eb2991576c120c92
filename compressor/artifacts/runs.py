"""Run records: which artifacts a run ended with. A run that changes nothing has the record of the one before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.fingerprint import digest_json
from compressor.errors import DamagedArtifactError

RECORD = "run.json"


class RunStep(BaseModel):
    """One step of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    artifact: str
    """The artifact's directory: its name inside the store, or a path outside it."""
    id: str
    manifest: str
    """The digest of the manifest, measurements and all."""
    parent: str | None


class RunRecord(BaseModel):
    """``runs/<pipeline>-<digest8>/run.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    command: str
    """What the user typed."""
    steps: tuple[RunStep, ...]
    gates: tuple[dict[str, Any], ...]

    @property
    def directory(self) -> str:
        """The name of the record's folder: equal runs share it."""
        return f"{self.pipeline}-{digest_json(self.model_dump(mode='json', exclude={'command'}))[:8]}"


def save_run(root: Path, record: RunRecord) -> Path:
    """Write the record below the store's ``root``; returns its folder, which is the newest from now on."""
    folder = root / "runs" / record.directory
    with writing(folder):
        if not (folder / RECORD).is_file():
            write_atomic(folder / RECORD, record.model_dump_json(indent=1).encode())
        os.utime(folder)
    return folder


def load_run(folder: Path) -> RunRecord:
    """Read a run record.

    Raises:
        DamagedArtifactError: it is missing or no run record.
    """
    try:
        return RunRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedArtifactError(f"{folder / RECORD} cannot be read: {str(error).splitlines()[0]}") from error


def latest_runs(root: Path) -> dict[str, RunRecord]:
    """The last record of each pipeline."""
    latest: dict[str, RunRecord] = {}
    folders = [folder for folder in (root / "runs").glob("*") if (folder / RECORD).is_file()]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns):
        record = load_run(folder)
        latest[record.pipeline] = record
    return latest
