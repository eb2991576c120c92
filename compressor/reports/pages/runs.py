"""Record a run with its report, and write the report of a recorded run again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.gain_report import Gain
from compressor.artifacts.run_folders import RECORD
from compressor.artifacts.runs import (
    GAINS,
    RunRecord,
    RunStep,
    find_run,
    read_run_file,
    save_run,
    verified_step,
)
from compressor.artifacts.store import Store
from compressor.engine.plan.plan import Plan
from compressor.engine.run.runner import RunResult
from compressor.errors import DamagedArtifactError, UsageError
from compressor.reports.pages.step_summary import summarize_run
from compressor.reports.pages.write import write_run_reports
from compressor.reports.rows.ladder import LadderInput
from compressor.reports.rows.run import RunReport

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
        _ladder_input(
            done.step.name, done.artifact, cached=done.how == "cached", parent=done.step.parent
        )
        for done in result.steps
    ]
    with save_run(plan.store, record) as (folder, staged):
        gains: tuple[Gain, ...] = ()
        with suppress(DamagedArtifactError):  # damaged results are set aside with the old record
            gains = _read_gains(folder) if (folder / RECORD).is_file() else ()
        report = _report(record, steps, gains)
        write_run_reports(staged, report, folder)
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
    return _rewrite(folder, record)


def record_gains(target: Path, gains: Sequence[Gain]) -> None:
    """Save the results of `gain` in a run's folder, and write its report again."""
    folder, record = find_run(target)
    _rewrite(folder, record, tuple(gains))


def run_as_json(folder: Path, report: RunReport) -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "run": str(folder),
        "pipeline": report.pipeline,
        "ladder": report.ladder.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in report.gates],
    }


def _rewrite(
    folder: Path, record: RunRecord, gains: tuple[Gain, ...] | None = None
) -> tuple[Path, RunReport]:
    """Write the report of a run again; ``gains`` replaces the results of `gain`."""
    store = Store(folder.absolute().parent.parent)
    store.check_writable()
    with store.session(step.id for step in record.steps):
        steps = [
            _ladder_input(
                step.name,
                verified_step(folder, step, as_measured=True),
                cached=True,
                parent=step.parent,
            )
            for step in record.steps
        ]
        with save_run(store, record, executed=False) as (final, staged):
            report = _report(record, steps, _read_gains(final) if gains is None else gains)
            write_run_reports(staged, report, final)
    return folder, report


def _ladder_input(
    step: str, artifact: Artifact, *, cached: bool, parent: str | None
) -> LadderInput:
    """Return a step for the ladder; its runtime is None where its format is not installed."""
    from compressor.runtimes.formats import format_named  # loads numpy

    try:
        runtime = format_named(artifact.manifest.format).runtime
    except UsageError:
        runtime = None
    return LadderInput(step, artifact, cached=cached, parent=parent, runtime=runtime)


def _report(record: RunRecord, steps: Sequence[LadderInput], gains: Sequence[Gain]) -> RunReport:
    notes = tuple(_unmeasured(steps))
    return RunReport(record.pipeline, steps, record.gates, record.command, notes, gains)


def _unmeasured(steps: Sequence[LadderInput]) -> Iterator[tuple[str, str]]:
    """Yield step and remedy where others are measured, and a runtime is not installed."""
    from compressor.runtimes.formats import format_named  # loads numpy

    manifests = {step.step: step.artifact.manifest for step in steps}
    if any(manifest.measured for manifest in manifests.values()):
        for step in steps:
            manifest = manifests[step.step]
            if step.runtime is None and not manifest.measured:
                with suppress(UsageError):  # the format is not installed
                    if install := format_named(manifest.format).runtime_remedy:
                        yield step.step, f"not measured: {install}"


def _read_gains(folder: Path) -> tuple[Gain, ...]:
    """Return the results of `gain` beside a run's record.

    Raises:
        DamagedArtifactError: they, or the record, are damaged.
    """
    content = read_run_file(folder, GAINS)
    if content is None:
        return ()
    try:
        return _GAINS_ADAPTER.validate_json(content)
    except (ValidationError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise DamagedArtifactError(f"{folder / GAINS} is damaged: {first}") from error
