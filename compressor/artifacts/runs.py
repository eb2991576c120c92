"""Run records: the artifacts and gate verdicts of a run. Equal runs share one record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.fingerprint import digest_json
from compressor.errors import DamagedArtifactError, UsageError

RECORD = "run.json"


class RunStep(BaseModel):
    """One step of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    artifact: str
    """The artifact's folder: its name inside the store, or a path outside it."""
    id: str
    manifest: str
    """Digest of the manifest, measurements included."""
    parent: str | None


class GateResult(BaseModel):
    """Verdict on one gate rule; values that are not available are None."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    gate: str
    """The rule as text: ``top1 max_drop 0.01 against student``."""
    step: str
    metric: str
    bound: str = ""
    """``min``, ``max``, ``max_drop`` or ``max_ratio``."""
    unit: str = ""
    value: float | None = None
    """The metric of the step."""
    reference: float | None = None
    """The metric of the reference."""
    found: float | None = None
    """The limited quantity: the value, its drop below the reference, or its ratio to it."""
    low: float | None = None
    """Lower end of the 95 % interval of ``found``."""
    high: float | None = None
    limit: float | None = None
    basis: str = ""
    """Evidence behind the interval: ``2000 paired samples``, ``16 interleaved rounds``."""
    decided: bool = True
    """True if the interval is clear of the limit."""
    passed: bool
    """Determines the exit code; an undecided gate passes or fails as its rule states."""
    reason: str
    key: str = ""
    """The sha256, for latency gates, of the rule, both models and the machine; equal keys share a
    verdict."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_record(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Take the bound from the rule's text in records of earlier versions, which lack it."""
        words = str(record.get("gate", "")).removeprefix(str(record.get("metric"))).split()
        return {"bound": words[0] if words else "", **record}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Literal["passed", "failed", "undecided"]:
        """The verdict in one word."""
        if not self.decided:
            return "undecided"
        return "passed" if self.passed else "failed"


class RunRecord(BaseModel):
    """``runs/<pipeline>-<digest8>/run.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    command: str
    """The command line."""
    steps: tuple[RunStep, ...]
    gates: tuple[GateResult, ...]

    @property
    def directory(self) -> str:
        """Name of the record's folder; equal runs share it."""
        return (
            f"{self.pipeline}-{digest_json(self.model_dump(mode='json', exclude={'command'}))[:8]}"
        )


def save_run(root: Path, record: RunRecord) -> Path:
    """Write the record into the store at ``root``, make its folder the newest, and return it."""
    folder = root / "runs" / record.directory
    with writing(folder):
        if not (folder / RECORD).is_file():
            write_atomic(folder / RECORD, record.model_dump_json(indent=1).encode())
        os.utime(folder)
    return folder


def load_run(folder: Path) -> RunRecord:
    """Read a run record.

    Raises:
        DamagedArtifactError: it is missing, or not a run record.
    """
    try:
        return RunRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedArtifactError(
            f"{folder / RECORD} cannot be read: {str(error).splitlines()[0]}"
        ) from error


def all_runs(root: Path) -> list[tuple[Path, RunRecord]]:
    """Return folder and record of every run of the store at ``root``, oldest first."""
    folders = [folder for folder in (root / "runs").glob("*") if (folder / RECORD).is_file()]
    return [
        (folder, load_run(folder))
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns)
    ]


def latest_runs(root: Path) -> dict[str, RunRecord]:
    """Return the last record of each pipeline."""
    return {record.pipeline: record for _, record in all_runs(root)}


def find_run(target: Path) -> tuple[Path, RunRecord]:
    """Return folder and record of a run: ``target``, its run.json, or the last run of a store.

    Raises:
        UsageError: there is no run.
        DamagedArtifactError: the record cannot be read.
    """
    folder = target.parent if target.name == RECORD else target
    if (folder / RECORD).is_file():
        return folder, load_run(folder)
    if runs := all_runs(target):
        return runs[-1]
    raise UsageError(
        f"{target} is neither a run nor a store with one",
        remedy="`autoglm-compress run` writes one",
    )
