"""From what a run did to its record and its report, and from a record back to the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.gain import Gain
from compressor.artifacts.runs import RunRecord, RunStep, find_run, save_run
from compressor.artifacts.store import open_artifact
from compressor.engine.plan.plan import Plan
from compressor.engine.run.runner import RunResult
from compressor.errors import DamagedArtifactError
from compressor.reports.pages.summary import summarize_run
from compressor.reports.pages.write import write_run_reports
from compressor.reports.rows.ladder import LadderInput
from compressor.reports.rows.run import RunReport

GAINS = "gain.json"
"""In a run's folder: what `gain` found."""
_ADAPTER = TypeAdapter(tuple[Gain, ...])


def record_run(plan: Plan, result: RunResult, command: str) -> tuple[Path, RunReport]:
    """Save the run's record and write its pages, unless an equal run did so before; returns its folder and report."""
    root = plan.store.root.resolve()
    record = RunRecord(
        pipeline=plan.pipeline.config.name,
        command=command,
        steps=tuple(
            RunStep(
                name=one.step.name,
                artifact=os.path.relpath(one.artifact.path.resolve(), root),
                id=one.artifact.id,
                manifest=one.artifact.manifest.digest,
                parent=one.step.parent,
            )
            for one in result.steps
        ),
        gates=result.gates,
    )
    steps = [
        LadderInput(one.step.name, one.artifact, one.how == "cached", one.step.parent)
        for one in result.steps
    ]
    folder = save_run(plan.store.root, record)
    report = RunReport(record.pipeline, steps, result.gates, command, gains=_gains(folder))
    write_run_reports(folder, report)
    summarize_run(report)
    return folder, report


def report_of_record(target: Path) -> tuple[Path, RunReport]:
    """The report of a run's folder, or of the last run in a store, its pages written again.

    Raises:
        UsageError: there is no run.
        DamagedArtifactError: the record or an artifact of it is damaged.
    """
    folder, record = find_run(target)
    root = folder.parent.parent
    steps = [
        LadderInput(step.name, open_artifact(root / step.artifact), True, step.parent)
        for step in record.steps
    ]
    report = RunReport(record.pipeline, steps, record.gates, record.command, gains=_gains(folder))
    write_run_reports(folder, report)
    return folder, report


def record_gains(target: Path, gains: Sequence[Gain]) -> Path:
    """Keep what `gain` found in the run's folder, and show it on the run's pages; returns the folder."""
    folder, _ = find_run(target)
    with writing(folder):
        write_atomic(folder / GAINS, _ADAPTER.dump_json(tuple(gains), indent=1))
    report_of_record(folder)
    return folder


def _gains(folder: Path) -> tuple[Gain, ...]:
    if not (folder / GAINS).is_file():
        return ()
    try:
        return _ADAPTER.validate_json((folder / GAINS).read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(
            f"{folder / GAINS} is damaged: {str(error).splitlines()[0]}"
        ) from error


def run_as_json(folder: Path, report: RunReport) -> dict[str, Any]:
    """A run for a program to read."""
    return {
        "run": str(folder),
        "pipeline": report.pipeline,
        "ladder": report.ladder.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in report.gates],
    }
