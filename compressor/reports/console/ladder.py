"""Lay out a run for the terminal: the ladder as a tree, the deliverables and the gates."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.artifacts.runs import GateResult
from compressor.reports.console.terminal import new_recorder, new_table, new_text_table, out
from compressor.reports.rows import deliverables, formatting, gates
from compressor.reports.rows.changes import change_text
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport
from compressor.reports.rows.tree import tree_rows

_VERDICT_STYLES = {"better": "green", "worse": "red", "noise": "dim", "same": "dim"}
_OPTIONAL_COLUMNS = (
    *("throughput", "generation_peak_rss_bytes", "peak_rss_bytes", "energy_mj"),
    *("parameters", "macs", "kv_cache_bytes", "first_token_ms"),
)
"""Columns that a narrow terminal leaves out, the first first; the page and --json have them."""
_UNLIMITED = 10_000
"""Columns of a terminal in which nothing is wrapped."""
_PICTURE_WIDTH = 128
"""Columns of a picture."""
_PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, "DejaVu Sans Mono", monospace;
line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Template of rich's SVG export, without the fonts that its own loads from the network."""


def write_picture(report: RunReport, file: Path) -> None:
    """Write what the terminal shows of a run as an SVG file.

    Raises:
        StorageError: the file cannot be written.
    """
    recorder = new_recorder(_PICTURE_WIDTH)
    recorder.print(run_renderable(report, _PICTURE_WIDTH))
    text = recorder.export_svg(
        title=report.pipeline, theme=DIMMED_MONOKAI, code_format=_PICTURE, unique_id="ladder"
    )
    with writing(file.parent):
        write_atomic(file, text.encode())


def run_renderable(report: RunReport, width: int) -> RenderableType:
    """Return the ladder, the deliverables and the gates, for a terminal of ``width`` columns."""
    parts: list[RenderableType] = [ladder_table(report.ladder, width)]
    if report.ladder.has_stand_in:
        parts.append(Text(formatting.STAND_IN_NOTE, style="dim"))
    if report.deliverables:
        parts += [
            Text(),
            Text(f"deliverables, against {deliverables.against_baseline(report.ladder)}"),
            _deliverables_table(report),
        ]
    if report.gates:
        parts += [Text(), *map(gate_line, report.gates)]
    return Group(*parts)


def ladder_table(ladder: Ladder, width: int) -> Table:
    """Return the ladder as a tree; columns are left out where the width is too small."""
    columns = list(ladder.columns)
    for optional in (*_OPTIONAL_COLUMNS, None):
        table = _table(ladder, columns)
        options = out.options.update(width=_UNLIMITED)
        if optional is None or Measurement.get(out, options, table).maximum <= width:
            break
        columns = [name for name in columns if name != optional]
    return table


def _table(ladder: Ladder, columns: list[str]) -> Table:
    table = new_table("step", *map(formatting.label, columns), "built in")
    for tree_row in tree_rows(ladder):
        row = tree_row.row
        step = Text.assemble((tree_row.lines, "dim"), row.step)
        cells = [_metric_cell(row, name) for name in columns]
        table.add_row(step, *cells, Text(formatting.duration(row.seconds), style="dim"))
    return table


def _metric_cell(row: LadderRow, name: str) -> Text:
    metric = row.metrics.get(name)
    if metric is None:
        return Text(formatting.DASH, style="dim")
    mark = formatting.STAND_IN if row.is_stand_in(name) else ""
    text = Text(formatting.metric(metric) + mark)
    if remark := row.remark(name):
        text.append(f" {remark}", style="dim")
    change = row.changes.get(name)
    if change is not None and change.verdict != "same" and not row.hides_change(name):
        text.append(f" {change_text(change, metric.unit)}", style=_VERDICT_STYLES[change.verdict])
    return text


def _deliverables_table(report: RunReport) -> Table:
    """Return what the run made, compared with the model that it started from."""
    metrics = map(formatting.label, deliverables.columns(report.ladder))
    table = new_text_table("deliverable", "for", "", *metrics)
    for deliverable in report.deliverables:
        table.add_row(
            Text(deliverable.row.step, style="bold"),
            Text(deliverable.runtime, style="dim"),
            Text(deliverables.distinction(deliverable), style="green"),
            *map(Text, deliverables.cells(deliverable, report.ladder)),
        )
    return table


def gate_line(result: GateResult) -> Text:
    """Return a gate as a sentence with its verdict, and the measurements behind it."""
    mark, style = ("✓", "green") if result.passed else ("✗", "bold red")
    basis = f"  [{result.basis}]" if result.basis else ""
    return Text.assemble((f"{mark} ", style), gates.sentence(result), (basis, "dim"))
