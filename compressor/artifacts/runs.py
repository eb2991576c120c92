"""Run records: the artifacts and gate verdicts of a run. Equal runs share one record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from compressor.artifacts.artifact import Artifact, entries_of, verified_artifact, was_replaced
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.exchange import replace_directory
from compressor.artifacts.files import copy_file, fsync_tree
from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.locks import lock
from compressor.artifacts.manifest import FileEntry
from compressor.artifacts.records import read_listed, read_unlisted, with_reports
from compressor.artifacts.run_folders import LADDER, RECORD, RUNS, run_folders
from compressor.artifacts.sessions import LOCKS, keep
from compressor.artifacts.store import Store
from compressor.errors import CompressError, DamagedArtifactError, UsageError
from compressor.foreign_files.limits import RECORD as RECORD_KIND
from compressor.foreign_files.opening import read_bytes

SAMPLES, GAINS = "samples.json", "gain.json"
RUN_FILES = (
    LADDER,
    SAMPLES,
    "gates.json",
    GAINS,
    "junit.xml",
    "report.md",
    "report.html",
)
"""Files beside a record, which it lists with their digests."""
_AGAIN = "run the pipeline again, which records its run again"


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

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pipeline: str
    command: str
    """The command line."""
    steps: tuple[RunStep, ...]
    gates: tuple[GateResult, ...]
    files: dict[str, FileEntry] = {}
    """The files beside the record: ladder, samples, pages."""
    digest: str = ""
    """sha256 of the rest of the record; empty in records of earlier versions."""

    @property
    def directory(self) -> str:
        """Name of the record's folder; equal runs share it."""
        what = json.loads(self.model_dump_json(include={"pipeline", "steps", "gates"}))
        return f"{self.pipeline}-{digest_json(what)[:8]}"

    @property
    def has_digests(self) -> bool:
        """False if it was written before records had digests: its figures are not checked."""
        return bool(self.digest)

    def sealed(self, files: Mapping[str, FileEntry]) -> RunRecord:
        """Return the record with the digests of the files beside it, and its own."""
        listed = self.model_copy(update={"files": dict(files), "digest": ""})
        return listed.model_copy(update={"digest": _digest(json.loads(listed.model_dump_json()))})


def _digest(tree: Mapping[str, Any]) -> str:
    return digest_json({key: value for key, value in tree.items() if key != "digest"})


def _is_intact(folder: Path) -> bool:
    try:
        return not damaged_files(folder, load_run(folder))
    except DamagedArtifactError:
        return False


@contextmanager
def save_run(
    store: Store, record: RunRecord, *, executed: bool = True
) -> Iterator[tuple[Path, Path]]:
    """Write a record and the files beside it, all at once.

    Yield the run's folder, and an empty one for the files; with the record, it becomes the run's
    folder. A damaged record of the same run is kept in ``.damaged``.

    Args:
        store: the store.
        record: the run.
        executed: True to make it the newest run of the store; False to keep its time.

    Raises:
        StorageError: the disk is full, or the store is not writable; nothing has changed.
    """
    folder = store.root / RUNS / record.directory
    with store.current_session() as session, lock(store.root / LOCKS / record.directory):
        staged = session.temporary("record")
        with writing(staged):
            staged.mkdir(parents=True)
        yield folder, staged
        with writing(folder):
            _keep_other_files(folder, staged)
            if executed or record.has_digests:
                names = [name for name in RUN_FILES if (staged / name).is_file()]
                record = record.sealed(entries_of(staged, *names))
            (staged / RECORD).write_bytes(record.model_dump_json(indent=1).encode())
            fsync_tree(staged)
            if not executed and folder.is_dir():
                moment = folder.stat().st_mtime_ns
                os.utime(staged, ns=(moment, moment))
            intact = not folder.is_dir() or _is_intact(folder)
            old = replace_directory(staged, folder, session.aside(folder))
            if old is not None:
                (store.remove if intact else store.set_aside)(old)


def _keep_other_files(folder: Path, staged: Path) -> None:
    """Take over what somebody else has put into a run's folder."""
    if folder.is_dir():
        for file in folder.iterdir():
            known = file.name in (RECORD, *RUN_FILES) or file.name.startswith(".")
            if not known and file.is_file() and not file.is_symlink():
                copy_file(file, staged / file.name)


def load_run(folder: Path) -> RunRecord:
    """Read a run record; its own digest is checked, and the files beside it when they are read.

    Raises:
        DamagedArtifactError: it is missing, changed, or not a run record.
    """
    file = folder / RECORD
    content = read_bytes(file, RECORD_KIND, DamagedArtifactError, _AGAIN)
    try:
        record = RunRecord.model_validate_json(content)
        intact = not record.digest or record.digest == _digest(json.loads(content))
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise DamagedArtifactError(
            f"{file} is damaged, or cannot be read: {str(error).splitlines()[0]}",
            remedy=_AGAIN,
        ) from error
    if not intact:
        raise DamagedArtifactError(
            f"{file} is damaged: its content does not match its own digest",
            remedy=_AGAIN,
        )
    return record


def read_run_file(folder: Path, name: str) -> bytes | None:
    """Return the content of a file beside a run's record; None if the run has none.

    Files of records without digests are not checked.

    Raises:
        DamagedArtifactError: the record or the file is damaged.
    """
    while True:
        record = load_run(folder)
        file = folder / name
        if not record.has_digests:
            return read_unlisted(file)
        if name not in record.files:
            return None
        try:
            return read_listed(file, record.files[name])
        except DamagedArtifactError:
            if load_run(folder).digest == record.digest:  # else the run was recorded again
                raise


def verified_step(folder: Path, step: RunStep, *, as_measured: bool) -> Artifact:
    """Return the artifact of a run's step with its reports in memory, every file checked.

    Args:
        folder: the run's folder.
        step: the step.
        as_measured: True to require the manifest, and so the metrics, of the run.

    Raises:
        UsageError: the artifact is gone, or was measured again since.
        DamagedArtifactError: it is damaged, or another one has its place.
    """
    path = folder.absolute().parent.parent / step.artifact
    artifact = with_reports(verified_artifact(path))
    if artifact.id != step.id:
        raise DamagedArtifactError(f"{path} is damaged: it holds another artifact")
    if as_measured and (artifact.manifest.digest != step.manifest or was_replaced(artifact)):
        raise UsageError(
            f"{path} has changed since {folder.name}: it was measured or built again",
            remedy="run the pipeline again, which records its run",
        )
    return artifact


@contextmanager
def kept_run(target: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Find a run as ``find_run``, and have `gc` keep its artifacts while a command reads them."""
    folder, record = find_run(target)
    needed: dict[Path, set[str]] = {}
    for step in record.steps:
        path = (folder.absolute().parent.parent / step.artifact).resolve()
        needed.setdefault(path.parent, set()).add(step.id)
    with keep(needed):
        yield folder, record


def damaged_files(folder: Path, record: RunRecord) -> list[str]:
    """Return the files beside a record that are missing or do not match it."""
    problems = []
    for name, entry in record.files.items():
        try:
            read_listed(folder / name, entry)
        except CompressError as error:
            problems.append(error.what)
    return problems


def is_run_of_store(folder: Path) -> bool:
    """Return True if a folder is a run's by its place and files; its record may be missing."""
    root = folder.parent.parent
    return folder.parent.name == RUNS and folder in run_folders(root) and Store(root).was_used()


def find_run(target: Path) -> tuple[Path, RunRecord]:
    """Return folder and record of a run: ``target``, its run.json, or the last run of a store.

    Raises:
        UsageError: there is no run.
        DamagedArtifactError: the record is damaged.
    """
    folder = target.parent if target.name == RECORD else target
    if (folder / RECORD).is_file() or is_run_of_store(folder):
        return folder, load_run(folder)
    if folders := run_folders(target):
        return folders[-1], load_run(folders[-1])
    raise UsageError(
        f"{target} is neither a run nor a store with one",
        remedy="`autoglm-compress run` writes one",
    )
