"""The runs of a store, as their ladders were."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import all_runs
from compressor.engine.gates.measured_model import measured_models_of_ladder
from compressor.errors import UsageError


class PastStep(BaseModel):
    """One row of a past ladder."""

    model_config = ConfigDict(frozen=True)

    step: str
    id: str
    metrics: dict[str, Metric]


class PastRun(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True)

    run: str
    """The name of its folder."""
    pipeline: str
    when: str
    """When it last was carried out; ISO 8601, UTC."""
    command: str
    passed: int
    """Gates that passed."""
    failed: int
    steps: tuple[PastStep, ...]


def history(store: Path, pipeline: str | None = None) -> tuple[PastRun, ...]:
    """All runs of a store, or those of one pipeline, oldest first.

    Raises:
        UsageError: there is none.
    """
    found = [
        PastRun(
            run=folder.name,
            pipeline=record.pipeline,
            when=_when(folder),
            command=record.command,
            passed=sum(gate.passed for gate in record.gates),
            failed=sum(not gate.passed for gate in record.gates),
            steps=tuple(
                PastStep(step=one.name, id=one.id, metrics=dict(one.metrics))
                for one in measured_models_of_ladder(folder).values()
            ),
        )
        for folder, record in all_runs(store)
        if pipeline in {None, record.pipeline}
    ]
    if not found:
        which = "no run" if pipeline is None else f"no run of {pipeline!r}"
        raise UsageError(f"{store} holds {which}", remedy="`autoglm-compress run` makes one")
    return tuple(found)


def followed(runs: Sequence[PastRun], metric: str) -> list[tuple[PastRun, PastStep, Metric]]:
    """One metric over the runs, step by step.

    Raises:
        UsageError: no run has it.
    """
    found = [
        (run, step, step.metrics[metric])
        for run in runs
        for step in run.steps
        if metric in step.metrics
    ]
    if not found:
        known = dict.fromkeys(
            name for run in runs for step in run.steps for name in step.metrics if "[" not in name
        )
        raise UsageError(f"no run has {metric!r}", remedy=f"one of {', '.join(known)}")
    return found


def _when(folder: Path) -> str:
    moment = datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)
    return moment.isoformat(timespec="seconds")
