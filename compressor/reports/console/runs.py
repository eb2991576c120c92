"""Print runs: the ladder, gates, the gain of each step, and the history of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.artifacts.gain_report import Gain
from compressor.artifacts.runs import GateResult
from compressor.reports.console.ladder import gate_line, run_renderable
from compressor.reports.console.terminal import (
    out,
    print_line,
    print_table,
)
from compressor.reports.rows import gains
from compressor.reports.rows.run import RunReport


def render_run(report: RunReport, folder: Path) -> None:
    """Print the ladder, the deliverables, the gates, and the path of the report."""
    out.print()
    out.print(run_renderable(report, out.width))
    out.print()
    print_line(f"report: {folder / 'report.html'}")


def render_gates(results: Sequence[GateResult]) -> None:
    """Print every gate as a sentence with its verdict, and the measurements behind it."""
    for result in results:
        out.print(gate_line(result))


def render_gains(results: Sequence[Gain]) -> None:
    """Print the gain of each step, and why steps are not significantly faster."""
    print_table(gains.COLUMNS, [gains.gain_cells(gain) for gain in results])
    for step, reason in gains.reasons_not_faster(results):
        print_line(f"{step} is {reason}")
