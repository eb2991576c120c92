"""Past runs of a store with the metrics of their steps, from their ladder reports."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from compressor.analysis.history_index import (
    METRICS,
    SLICES,
    Entry,
    read_index,
    stamp,
    write_index,
)
from compressor.artifacts.run_folders import LADDER, pipeline_of, run_folders
from compressor.errors import CompressError, UsageError

_SLICE = "["
"""In the names of metrics of slices, such as ``top1[input=speech]``."""


class PastMetric(NamedTuple):
    """A metric of a past step; it was validated when it was read first."""

    value: float
    unit: str
    better: str
    samples: int
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PastStep:
    """A step of a past run."""

    step: str
    id: str
    recorded: Mapping[str, Sequence[Any]]
    """Metric to the values of a ``PastMetric``."""

    def metric(self, name: str) -> PastMetric | None:
        """Return a metric; None if it was not measured."""
        values = self.recorded.get(name)
        return None if values is None else PastMetric(*values)

    @property
    def whole_metrics(self) -> list[str]:
        """The names of the metrics, without those of slices."""
        return [name for name in self.recorded if _SLICE not in name]

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        metrics = {
            name: {"name": name, **PastMetric(*values)._asdict()}
            for name, values in self.recorded.items()
        }
        return {"step": self.step, "id": self.id, "metrics": metrics}


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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"steps": [step.to_json() for step in self.steps]}


@dataclass(frozen=True, slots=True)
class History:
    """The runs of a store, oldest first."""

    runs: tuple[PastRun, ...]
    damaged: tuple[str, ...]
    """Errors of the runs that are left out because their records are damaged."""


def read_history(store: Path, pipeline: str | None = None, *, slices: bool = True) -> History:
    """Return the runs of a store, or those of one pipeline.

    A run whose files are unchanged since they were read before comes from the index.

    Args:
        store: the store.
        pipeline: list only the runs of this pipeline.
        slices: False to leave out the metrics of slices.

    Raises:
        UsageError: there is no run.
    """
    reader = _Reader(store, slices=slices)
    folders = run_folders(store)
    listed = [folder for folder in folders if pipeline in {None, pipeline_of(folder)}]
    runs = [run for folder in listed if (run := reader.read(folder)) is not None]
    reader.save(folders)
    if not runs and not reader.damaged:
        missing = "no run" if pipeline is None else f"no run of {pipeline!r}"
        raise UsageError(f"{store} holds {missing}", remedy="start one with `autoglm-compress run`")
    return History(tuple(runs), tuple(reader.damaged))


class _Reader:
    """Reads runs from the index, and those that it lacks from their records."""

    def __init__(self, store: Path, *, slices: bool) -> None:
        self._store, self._needs_slices = store, slices
        self._metrics = read_index(store, METRICS)
        self._slices = read_index(store, SLICES) if slices else None
        self._changed = False
        self.damaged: list[str] = []
        """Errors of the records that could not be read."""

    def read(self, folder: Path) -> PastRun | None:
        """Return a run; None if its record is damaged."""
        name, now = folder.name, stamp(folder)
        entry = self._entry(self._metrics, name, now)
        sliced = self._entry(self._slices or {}, name, now)
        if entry is None or (self._needs_slices and sliced is None):
            try:
                entry, sliced = self._read_record(folder, now)
            except CompressError as error:
                self._changed |= self._metrics.pop(name, None) is not None
                self.damaged.append(error.what)
                return None
        more: list[dict[str, Any]] = [{}] * len(entry["steps"])
        if self._needs_slices and sliced is not None:
            more = sliced["steps"]
        steps = tuple(
            PastStep(step, id_, metrics | of_slices)
            for (step, id_, metrics), of_slices in zip(entry["steps"], more, strict=True)
        )
        return PastRun(run=name, when=_modified(folder), steps=steps, **entry["run"])

    @staticmethod
    def _entry(index: Mapping[str, Entry], name: str, now: list[list[int]]) -> Entry | None:
        entry = index.get(name)
        return entry if entry is not None and entry["stamp"] == now else None

    def _read_record(self, folder: Path, now: list[list[int]]) -> tuple[Entry, Entry]:
        """Read a run's files, and add it to the index."""
        if self._slices is None:
            self._slices = read_index(self._store, SLICES)
        self._metrics[folder.name], self._slices[folder.name] = _read_run(folder, now)
        self._changed = True
        return self._metrics[folder.name], self._slices[folder.name]

    def save(self, folders: Sequence[Path]) -> None:
        """Write the index, if it has changed, without the runs that are gone."""
        names = {folder.name for folder in folders}
        if self._changed or not self._metrics.keys() <= names:
            slices = self._slices if self._slices is not None else read_index(self._store, SLICES)
            for file, index in ((METRICS, self._metrics), (SLICES, slices)):
                kept = {name: entry for name, entry in index.items() if name in names}
                write_index(self._store, file, kept)


def _read_run(folder: Path, now: list[list[int]]) -> tuple[Entry, Entry]:
    """Return the entries of a run in the two files of the index.

    Raises:
        CompressError: a file is damaged.
    """
    # These take longer to import than an index to read.
    from compressor.artifacts.runs import load_run
    from compressor.engine.gates.measured_model import ladder_rows

    record = load_run(folder)
    steps, slices = [], []
    for row in ladder_rows(folder / LADDER):
        metrics = {
            name: [getattr(metric, field) for field in PastMetric._fields]
            for name, metric in row.metrics.items()
        }
        whole = {name: values for name, values in metrics.items() if _SLICE not in name}
        steps.append([row.step, row.id, whole])
        slices.append({name: metrics[name] for name in metrics if name not in whole})
    run = {
        "pipeline": record.pipeline,
        "command": record.command,
        "passed": sum(gate.passed for gate in record.gates),
        "failed": sum(not gate.passed for gate in record.gates),
        "checked": record.has_digests,
    }
    return {"stamp": now, "run": run, "steps": steps}, {"stamp": now, "steps": slices}


def metric_history(
    runs: Sequence[PastRun], metric: str
) -> list[tuple[PastRun, PastStep, PastMetric]]:
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
