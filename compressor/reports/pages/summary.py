"""What a CI job shows on its page: GitHub's step summary, where the job has one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.runs import GateResult
from compressor.reports.pages.markdown import gates_table, ladder_table, text
from compressor.reports.rows.run import RunReport

VARIABLE = "GITHUB_STEP_SUMMARY"
"""Names the file that GitHub shows as Markdown."""


def summarize_run(report: RunReport) -> None:
    """The ladder and the gates of a run."""
    _append(
        report.pipeline,
        [ladder_table(report.ladder), *([gates_table(report.gates)] if report.gates else [])],
    )


def summarize_gates(title: str, gates: Sequence[GateResult]) -> None:
    """The gates of a run that is judged by itself."""
    _append(title, [gates_table(gates)])


def _append(title: str, parts: Sequence[str]) -> None:
    if not (name := os.environ.get(VARIABLE)):
        return
    with writing(Path(name)), Path(name).open("a", encoding="utf-8") as file:
        file.write("\n\n".join([f"## {text(title)}", *parts]) + "\n\n")
