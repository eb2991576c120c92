"""Past runs of a store with the metrics of their steps, from their ladder reports."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import LADDER, load_run, pipeline_of, run_folders
from compressor.engine.gates.measured_model import ladder_rows
from compressor.errors import UsageError


class PastStep(BaseModel):
    """A step of a past run."""

    model_config = ConfigDict(frozen=True)

    step: str
    id: str
    metrics: dict[str, Metric]


class PastRun(BaseModel):
    """A past run."""

    model_config = ConfigDict(frozen=True)

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
    steps: tuple[PastStep, ...]


def list_runs(store: Path, pipeline: str | None = None) -> tuple[PastRun, ...]:
    """Return the runs of a store, or those of one pipeline, oldest first.

    Raises:
        UsageError: there is no run.
    """
    runs = [
        PastRun(
            run=folder.name,
            pipeline=record.pipeline,
            when=_modified(folder),
            command=record.command,
            passed=sum(gate.passed for gate in record.gates),
            failed=sum(not gate.passed for gate in record.gates),
            steps=tuple(
                PastStep(step=step.step, id=step.id, metrics=dict(step.metrics))
                for step in ladder_rows(folder / LADDER)
            ),
        )
        for folder in run_folders(store)
        if pipeline in {None, pipeline_of(folder)}
        for record in [load_run(folder)]
    ]
    if not runs:
        missing = "no run" if pipeline is None else f"no run of {pipeline!r}"
        raise UsageError(f"{store} holds {missing}", remedy="start one with `autoglm-compress run`")
    return tuple(runs)


def metric_history(runs: Sequence[PastRun], metric: str) -> list[tuple[PastRun, PastStep, Metric]]:
    """Return the values of a metric in every step of every run.

    Raises:
        UsageError: no run has the metric.
    """
    rows = [
        (run, step, step.metrics[metric])
        for run in runs
        for step in run.steps
        if metric in step.metrics
    ]
    if not rows:
        names = dict.fromkeys(
            name for run in runs for step in run.steps for name in step.metrics if "[" not in name
        )
        raise UsageError(f"no run has {metric!r}", remedy=f"one of {', '.join(names)}")
    return rows


def _modified(folder: Path) -> str:
    moment = datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)
    return moment.isoformat(timespec="seconds")
