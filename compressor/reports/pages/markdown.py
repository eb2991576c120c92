"""Write report.md of an artifact and of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from compressor.artifacts.manifest import Manifest, Metric
from compressor.artifacts.runs import GateResult
from compressor.evaluation.records import Measurement
from compressor.foreign_files.printable import printable
from compressor.reports.rows import artifact, formatting, gains, gates, model_files
from compressor.reports.rows.changes import change_text
from compressor.reports.rows.deliverables import (
    against_baseline,
    cells,
    columns,
    distinction,
)
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport
from compressor.reports.rows.tree import tree_rows

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~$#&])")


def artifact_markdown(
    manifest: Manifest, measurement: Measurement | None, command: str, model: Path | None = None
) -> str:
    """Return the report of one artifact.

    Args:
        manifest: The artifact's manifest.
        measurement: What was measured when the artifact was built, if anything.
        command: The command line that reproduces the artifact.
        model: The model's folder, for its calibration table.
    """
    parts = [
        f"# {escape(manifest.step)}",
        table(("", ""), artifact.about(manifest)),
        *_measured(manifest, measurement),
        *_calibration(model),
        *_summary(manifest),
        "## Config",
        fence(json.dumps(manifest.pass_.config, indent=2, ensure_ascii=False), "json"),
        *_origin(manifest),
        "## Reproduce",
        fence(command, "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(manifest: Manifest, measurement: Measurement | None) -> list[str]:
    """Return the sections on metrics, slices and latency."""
    parts = []
    if manifest.metrics:
        parts += [
            "## Metrics",
            *artifact.measurement_notes(measurement),
            _metrics(artifact.headline(manifest)),
        ]
    if rows := artifact.slices(manifest):
        names = artifact.slice_metrics(rows)
        cells = [
            (
                formatting.slice_name(row.name),
                str(row.samples),
                *(_with_interval(row.metrics.get(name)) for name in names),
            )
            for row in rows
        ]
        parts += ["## Slices", table(("slice", "samples", *map(formatting.label, names)), cells)]
    if latency := artifact.latency_rows(manifest):
        parts += ["## Latency", _metrics(latency)]
    return parts


def _calibration(model: Path | None) -> list[str]:
    ranges = model_files.read_calibration(model) if model is not None else []
    if not ranges:
        return []
    cells = [
        (
            row.tensor,
            formatting.count(row.values),
            *map(formatting.digits, (row.minimum, row.maximum, row.bound)),
        )
        for row in ranges
    ]
    headers = ("tensor", "values", "minimum", "maximum", "integer range ±")
    return ["## Calibration", table(headers, cells)]


def _summary(manifest: Manifest) -> list[str]:
    """Return the sections on what the pass recorded."""
    parts = []
    if notes := artifact.notes(manifest):
        parts += ["## Notes", "\n".join(f"- {escape(note)}" for note in notes)]
    if summary := artifact.summary(manifest):
        parts += ["## Pass summary", table(("", ""), summary)]
    for records in artifact.summary_tables(manifest):
        parts += [f"## {records.name.capitalize()}", table(records.columns, records.rows)]
    return parts


def _origin(manifest: Manifest) -> list[str]:
    """Return the sections on lineage, files and environment."""
    lineage = artifact.lineage(manifest)
    files = [
        (name, formatting.size(entry.bytes), entry.sha256)
        for name, entry in sorted(manifest.files.items())
    ]
    return [
        "## Lineage",
        table(("input", "id"), lineage) if lineage else "A source model: it has no parents.",
        "## Files",
        table(("file", "size", "sha256"), files),
        "## Environment",
        table(("", ""), artifact.environment(manifest)),
    ]


def run_markdown(report: RunReport) -> str:
    """Return the report of a run: ladder, gates, gains, slices and notes."""
    parts = [f"# {escape(report.pipeline)}"]
    if report.deliverables:
        parts += [
            "## Deliverables",
            f"Compared with {escape(against_baseline(report.ladder))}.",
            deliverables_table(report),
        ]
    parts += [
        "## Ladder",
        ladder_table(report.ladder),
        "Steps that were made from one another stand together. A change is against the closest "
        "step before it in the tree, for latency and memory of the same runtime; ≈ marks a change "
        "within noise: the 95 % intervals overlap.",
    ]
    if report.ladder.has_stand_in:
        parts += [f"{escape(formatting.STAND_IN_NOTE)}."]
    if report.gates:
        parts += ["## Gates", gates_table(report.gates)]
    if report.gains:
        parts += ["## Gain of each step"]
        parts += [table(gains.COLUMNS, map(gains.gain_cells, report.gains))]
        if reasons := gains.reasons_not_faster(report.gains):
            parts += [
                "\n".join(f"- **{escape(step)}** is {escape(text)}" for step, text in reasons)
            ]
    if slices := report.ladder.slices():
        parts += ["## Slices", _slices_table(report.ladder, slices)]
    if notes := report.all_notes():
        lines = (f"- **{escape(step)}**: {escape(text)}" for step, text in notes)
        parts += ["## Notes", "\n".join(lines)]
    parts += [
        "## Environment",
        table(("", ""), artifact.environment(report.steps[-1].artifact.manifest)),
        "## Reproduce",
        fence(report.command, "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def ladder_table(ladder: Ladder) -> str:
    """Return the ladder as a table: one row per step, each metric with its change."""
    headers = ("step", "format", *map(formatting.label, ladder.columns), "built in")
    rows = [
        (
            tree_row.lines + tree_row.row.step,
            tree_row.row.format,
            *(_metric_cell(tree_row.row, name) for name in ladder.columns),
            formatting.duration(tree_row.row.seconds),
        )
        for tree_row in tree_rows(ladder)
    ]
    return table(headers, rows)


def gates_table(results: Sequence[GateResult]) -> str:
    """Return the gates with their verdicts as a table."""
    rows = [
        ("✓" if result.passed else "✗", gates.sentence(result), result.basis) for result in results
    ]
    return table(("", "gate", "basis"), rows)


def deliverables_table(report: RunReport) -> str:
    """Return the deliverables, compared with the model that the run started from."""
    headers = ("deliverable", "for", "", *map(formatting.label, columns(report.ladder)))
    rows = [
        (
            deliverable.row.step,
            deliverable.runtime,
            distinction(deliverable),
            *cells(deliverable, report.ladder),
        )
        for deliverable in report.deliverables
    ]
    return table(headers, rows)


def _metric_cell(row: LadderRow, name: str) -> str:
    metric = row.metrics.get(name)
    if metric is None:
        return formatting.DASH
    mark = formatting.STAND_IN if row.is_stand_in(name) else ""
    if remark := row.remark(name):
        mark = f" {remark}"
    change = None if row.hides_change(name) else row.changes.get(name)
    suffix = f" ({change_text(change, metric.unit)})" if change else ""
    return _with_interval(metric) + mark + suffix


def _with_interval(metric: Metric | None) -> str:
    interval = formatting.interval(metric)
    return formatting.metric(metric) + (f" [{interval}]" if interval else "")


def _metrics(metrics: Iterable[Metric]) -> str:
    rows = [
        (
            formatting.label(metric.name),
            formatting.metric(metric),
            formatting.interval(metric),
            str(metric.samples),
        )
        for metric in metrics
    ]
    return table(("metric", "value", "95 % interval", "samples"), rows)


def _slices_table(ladder: Ladder, slices: Sequence[str]) -> str:
    """Return the primary metric by slice (rows) and step (columns)."""
    names = {slice_: f"{ladder.primary}[{slice_}]" for slice_ in slices}
    rows = [row for row in ladder.rows if not row.metrics.keys().isdisjoint(names.values())]
    cells = [
        (
            formatting.slice_name(slice_),
            *(_with_interval(row.metrics.get(name)) for row in rows),
        )
        for slice_, name in names.items()
    ]
    return table(
        (f"{formatting.label(str(ladder.primary))} by slice", *(row.step for row in rows)), cells
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a pipe table; every cell is escaped."""
    head = [[escape(header) for header in headers], ["---"] * len(headers)]
    body = [[escape(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (*head, *body))


def escape(text: str) -> str:
    """Return text on one line, with every character escaped that Markdown or HTML interprets."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def fence(code: str, language: str) -> str:
    """Return a code block; its fence is longer than any run of backticks in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{code}\n{marks}"
