"""Record a run with its report, and write the report of a recorded run again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.gain_report import Gain
from compressor.artifacts.runs import RunRecord, RunStep, find_run, save_run
from compressor.artifacts.store import open_artifact
from compressor.engine.plan.plan import Plan
from compressor.engine.run.runner import RunResult
from compressor.errors import DamagedArtifactError
from compressor.reports.pages.step_summary import summarize_run
from compressor.reports.pages.write import write_run_reports
from compressor.reports.rows.ladder import LadderInput
from compressor.reports.rows.run import RunReport

GAINS = "gain.json"
"""File in a run's folder with the results of `gain`."""
_GAINS_ADAPTER = TypeAdapter(tuple[Gain, ...])


def record_run(plan: Plan, result: RunResult, command: str) -> tuple[Path, RunReport]:
    """Save the record of a run and write its report.

    Returns:
        The run's folder and its report.
    """
    root = plan.store.root.resolve()
    record = RunRecord(
        pipeline=plan.pipeline.config.name,
        command=command,
        steps=tuple(
            RunStep(
                name=done.step.name,
                artifact=os.path.relpath(done.artifact.path.resolve(), root),
                id=done.artifact.id,
                manifest=done.artifact.manifest.digest,
                parent=done.step.parent,
            )
            for done in result.steps
        ),
        gates=result.gates,
    )
    steps = [
        LadderInput(done.step.name, done.artifact, done.how == "cached", done.step.parent)
        for done in result.steps
    ]
    folder = save_run(plan.store.root, record)
    report = _write_report(folder, record, steps)
    summarize_run(report)
    return folder, report


def rewrite_report(target: Path) -> tuple[Path, RunReport]:
    """Write the report of a recorded run again.

    Args:
        target: The run's folder, or a store: its last run.

    Returns:
        The run's folder and its report.

    Raises:
        UsageError: There is no run.
        DamagedArtifactError: The record or one of its artifacts is damaged.
    """
    folder, record = find_run(target)
    root = folder.parent.parent
    steps = [
        LadderInput(step.name, open_artifact(root / step.artifact), True, step.parent)
        for step in record.steps
    ]
    return folder, _write_report(folder, record, steps)


def record_gains(target: Path, gains: Sequence[Gain]) -> None:
    """Save the results of `gain` in a run's folder, and write its report again."""
    folder, _ = find_run(target)
    with writing(folder):
        write_atomic(folder / GAINS, _GAINS_ADAPTER.dump_json(tuple(gains), indent=1))
    rewrite_report(folder)


def run_as_json(folder: Path, report: RunReport) -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "run": str(folder),
        "pipeline": report.pipeline,
        "ladder": report.ladder.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in report.gates],
    }


def _write_report(folder: Path, record: RunRecord, steps: Sequence[LadderInput]) -> RunReport:
    gains = _read_gains(folder)
    report = RunReport(record.pipeline, steps, record.gates, record.command, gains=gains)
    write_run_reports(folder, report)
    return report


def _read_gains(folder: Path) -> tuple[Gain, ...]:
    file = folder / GAINS
    if not file.is_file():
        return ()
    try:
        return _GAINS_ADAPTER.validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
