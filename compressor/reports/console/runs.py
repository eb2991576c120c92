"""Print runs: the ladder, gates, the gain of each step, and the history of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from compressor.artifacts.gain_report import Gain
from compressor.artifacts.runs import GateResult
from compressor.reports.console.terminal import (
    new_table,
    out,
    print_line,
    print_table,
)
from compressor.reports.rows import formatting, gains, gates
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport

_VERDICT_STYLES = {"better": "green", "worse": "red", "noise": "dim", "same": "dim"}


def render_run(report: RunReport, folder: Path) -> None:
    """Print the ladder, the gates, and the path of the report."""
    out.print()
    out.print(_ladder_table(report.ladder))
    if report.ladder.has_stand_in:
        print_line(formatting.STAND_IN_NOTE)
    if report.gates:
        out.print()
        render_gates(report.gates)
    out.print()
    print_line(f"report: {folder / 'report.html'}")


def _ladder_table(ladder: Ladder) -> Table:
    table = new_table("step", *map(formatting.label, ladder.columns), "built in")
    for row in ladder.rows:
        cells = [_metric_cell(row, name) for name in ladder.columns]
        table.add_row(Text(row.step), *cells, Text(formatting.duration(row.seconds), style="dim"))
    return table


def _metric_cell(row: LadderRow, name: str) -> Text:
    metric = row.metrics.get(name)
    if metric is None:
        return Text(formatting.DASH, style="dim")
    mark = formatting.STAND_IN if row.is_stand_in(name) else ""
    text = Text(formatting.metric(metric) + mark)
    change = row.against_parent.get(name)
    if change is not None and change.verdict != "same":
        delta = (
            formatting.difference(change.absolute, metric.unit)
            if metric.unit == "fraction"
            else formatting.ratio(change.ratio)
        )
        text.append(f" {delta}", style=_VERDICT_STYLES[change.verdict])
    return text


def render_gates(results: Sequence[GateResult]) -> None:
    """Print every gate with its measured value, interval, limit and verdict."""
    table = new_table(*gates.COLUMNS)
    for result in results:
        *cells, verdict = gates.gate_row(result).cells
        style = "green" if result.passed else "bold red"
        table.add_row(*map(Text, cells), Text(verdict, style=style))
    out.print(table)


def render_gains(results: Sequence[Gain]) -> None:
    """Print the gain of each step, and why steps are not significantly faster."""
    print_table(gains.COLUMNS, [gains.gain_cells(gain) for gain in results])
    for step, reason in gains.reasons_not_faster(results):
        print_line(f"{step} is {reason}")
