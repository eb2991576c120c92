"""Append Markdown to the summary page of a GitHub Actions job, if the job has one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.runs import GateResult
from compressor.reports.pages.markdown import (
    deliverables_table,
    escape,
    gates_table,
    ladder_table,
)
from compressor.reports.rows.run import RunReport

VARIABLE = "GITHUB_STEP_SUMMARY"
"""Environment variable: file to which `run` appends the ladder and the gates, and `gate` its table;
GitHub Actions sets it."""


def summarize_run(report: RunReport) -> None:
    """Append the deliverables, the ladder and the gates of a run."""
    gates = [gates_table(report.gates)] if report.gates else []
    made = [deliverables_table(report)] if report.deliverables else []
    _append(report.pipeline, [*made, ladder_table(report.ladder), *gates])


def summarize_gates(title: str, results: Sequence[GateResult]) -> None:
    """Append the results of the command ``gate``."""
    _append(title, [gates_table(results)])


def _append(title: str, parts: Sequence[str]) -> None:
    if not (name := os.environ.get(VARIABLE)):
        return
    with writing(Path(name)), Path(name).open("a", encoding="utf-8") as file:
        file.write("\n\n".join([f"## {escape(title)}", *parts]) + "\n\n")
