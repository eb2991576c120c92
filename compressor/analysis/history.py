"""Past runs of a store with the metrics of their steps, from their ladder reports."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compressor.artifacts.files import write_atomic
from compressor.artifacts.manifest import Metric
from compressor.artifacts.records import read_unlisted
from compressor.artifacts.runs import LADDER, RECORD, load_run, pipeline_of, run_folders
from compressor.artifacts.store import RUNS
from compressor.engine.gates.measured_model import ladder_rows
from compressor.errors import CompressError, UsageError


@dataclass(frozen=True, slots=True)
class PastStep:
    """A step of a past run."""

    step: str
    id: str
    recorded: Mapping[str, Mapping[str, Any]]
    """Metric to the JSON object in the ladder; they were validated when they were read first."""

    def metric(self, name: str) -> Metric | None:
        """Return a metric; None if it was not measured."""
        values = self.recorded.get(name)
        return None if values is None else Metric.model_construct(**values)

    @property
    def whole_metrics(self) -> list[str]:
        """The names of the metrics, without those of slices."""
        return [name for name in self.recorded if "[" not in name]


@dataclass(frozen=True, slots=True)
class PastRun:
    """A past run."""

    run: str
    """Name of the run's folder."""
    pipeline: str
    when: str
    """Time of its last execution; ISO 8601, UTC."""
    command: str
    passed: int
    """Number of gates that passed."""
    failed: int
    """Number of gates that failed."""
    checked: bool
    """False if its record was written before records had digests."""
    steps: tuple[PastStep, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the run as JSON values."""
        steps = [
            {"step": step.step, "id": step.id, "metrics": step.recorded} for step in self.steps
        ]
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"steps": steps}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> PastRun:
        """Return the run of a tree from ``to_json``."""
        steps = (PastStep(step["step"], step["id"], step["metrics"]) for step in tree["steps"])
        return cls(**{**tree, "steps": tuple(steps)})


@dataclass(frozen=True, slots=True)
class History:
    """The runs of a store, oldest first."""

    runs: tuple[PastRun, ...]
    damaged: tuple[str, ...]
    """What is wrong with the runs that are left out because their records are damaged."""


def read_history(store: Path, pipeline: str | None = None) -> History:
    """Return the runs of a store, or those of one pipeline.

    A run whose files are unchanged since they were read before comes from ``runs/.index.json``.

    Raises:
        UsageError: there is no run.
    """
    index = _read_index(store)
    entries: dict[str, _Entry] = {}
    damaged = []
    for folder in run_folders(store):
        name, is_listed = folder.name, pipeline in {None, pipeline_of(folder)}
        stamp = _stamp(folder) if is_listed else None
        known = index.get(name)
        if known is not None and stamp in (None, known["stamp"]):
            entries[name] = known
        elif is_listed:
            try:
                entries[name] = {"stamp": stamp, "run": _read_run(folder)}
            except CompressError as error:
                damaged.append(error.what)
    if entries != index:
        _write_index(store, entries)
    listed = tuple(
        PastRun.from_json(entry["run"] | {"when": _modified(store / RUNS / name)})
        for name, entry in entries.items()
        if pipeline in {None, entry["run"]["pipeline"]}
    )
    if not listed and not damaged:
        missing = "no run" if pipeline is None else f"no run of {pipeline!r}"
        raise UsageError(f"{store} holds {missing}", remedy="start one with `autoglm-compress run`")
    return History(listed, tuple(damaged))


def _read_run(folder: Path) -> dict[str, Any]:
    record = load_run(folder)
    steps = (
        PastStep(
            row.step, row.id, {name: metric.model_dump() for name, metric in row.metrics.items()}
        )
        for row in ladder_rows(folder / LADDER)
    )
    return PastRun(
        run=folder.name,
        pipeline=record.pipeline,
        when="",
        command=record.command,
        passed=sum(gate.passed for gate in record.gates),
        failed=sum(not gate.passed for gate in record.gates),
        checked=record.has_digests,
        steps=tuple(steps),
    ).to_json()


_Entry = dict[str, Any]
"""Of the index: a run as JSON, and the stamp of the files that it was read from."""
_INDEX = ".index.json"
_VERSION = b"1"
"""Of the index's layout: an index of another version does not match its digest."""
_DIGEST_CHARACTERS = 64


def _stamp(folder: Path) -> list[list[int]]:
    """Return inode, size, and times of change of a run's files; empty if one is missing.

    The time of change (ctime) cannot be set back, so that no edit goes unnoticed.
    """
    stamps = []
    for name in (RECORD, LADDER):
        try:
            status = os.lstat(f"{folder}/{name}")
        except OSError:
            return []
        stamps.append([status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return stamps


def _read_index(store: Path) -> dict[str, _Entry]:
    """Return the indexed runs by folder name; none if the index is missing or damaged."""
    with suppress(CompressError, ValueError):
        content = read_unlisted(store / RUNS / _INDEX) or b""
        digest, text = content[:_DIGEST_CHARACTERS], content[_DIGEST_CHARACTERS:]
        if hashlib.sha256(_VERSION + text).hexdigest().encode() == digest:
            index: dict[str, _Entry] = json.loads(text)
            return index
    return {}


def _write_index(store: Path, entries: dict[str, _Entry]) -> None:
    """Write the index; a store that cannot be written has none."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    with suppress(OSError):
        digest = hashlib.sha256(_VERSION + text).hexdigest().encode()
        write_atomic(store / RUNS / _INDEX, digest + text)


def metric_history(runs: Sequence[PastRun], metric: str) -> list[tuple[PastRun, PastStep, Metric]]:
    """Return the values of a metric in every step of every run.

    Raises:
        UsageError: no run has the metric.
    """
    rows = [
        (run, step, value)
        for run in runs
        for step in run.steps
        if (value := step.metric(metric)) is not None
    ]
    if not rows:
        names = dict.fromkeys(
            name for run in runs for step in run.steps for name in step.whole_metrics
        )
        raise UsageError(f"no run has {metric!r}", remedy=f"one of {', '.join(names)}")
    return rows


def _modified(folder: Path) -> str:
    moment = datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)
    return moment.isoformat(timespec="seconds")
