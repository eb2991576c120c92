"""report.md: of one artifact, and of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from compressor.artifacts.manifest import Manifest, Metric
from compressor.artifacts.runs import GateResult
from compressor.evaluation.records import Measurement
from compressor.reports.rows import facts, formats
from compressor.reports.rows.gain_rows import COLUMNS as GAIN_COLUMNS
from compressor.reports.rows.gain_rows import gain_cells, reasons
from compressor.reports.rows.gate_rows import COLUMNS, gate_row
from compressor.reports.rows.ladder import Change, Ladder, LadderRow
from compressor.reports.rows.run import RunReport

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~$#&])")


def artifact_markdown(
    manifest: Manifest, measurement: Measurement | None, command: str, model: Path | None = None
) -> str:
    """What the artifact is, what was measured of it, and how to make it again."""
    parts = [f"# {text(manifest.step)}", table(("", ""), facts.about(manifest))]
    if manifest.metrics:
        parts += [
            "## Figures",
            *facts.how_measured(measurement),
            _metrics(facts.headline(manifest)),
        ]
    if rows := facts.slices(manifest):
        names = list(dict.fromkeys(name for row in rows for name in row.metrics))
        cells = [
            (
                formats.readable_slice(row.name),
                str(row.samples),
                *(_with_interval(row.metrics.get(n)) for n in names),
            )
            for row in rows
        ]
        parts += ["## Slices", table(("slice", "samples", *map(formats.label, names)), cells)]
    if latency := facts.latency_rows(manifest):
        parts += ["## Latency", _metrics(latency)]
    if ranges := facts.calibration(model) if model is not None else []:
        cells = [
            (
                row.tensor,
                formats.count(row.values),
                *map(formats.digits, (row.minimum, row.maximum, row.bound)),
            )
            for row in ranges
        ]
        parts += [
            "## Calibration",
            table(("tensor", "values", "smallest", "largest", "integers end at"), cells),
        ]
    if notes := facts.notes(manifest):
        parts += ["## Notes", "\n".join(f"- {text(note)}" for note in notes)]
    if summary := facts.summary(manifest):
        parts += ["## What the pass tells", table(("", ""), summary)]
    for name, columns, records in facts.tables(manifest):
        parts += [f"## {name.capitalize()}", table(columns, records)]
    files = [
        (name, formats.size(entry.bytes), entry.sha256)
        for name, entry in sorted(manifest.files.items())
    ]
    parts += [
        "## Config",
        fenced(json.dumps(manifest.pass_.config, indent=2, ensure_ascii=False), "json"),
        "## Lineage",
        table(("made from", "id"), facts.lineage(manifest))
        if facts.lineage(manifest)
        else "A source: nothing came before.",
        "## Files",
        table(("file", "size", "sha256"), files),
        "## Environment",
        table(("", ""), facts.environment(manifest)),
        "## Reproduce",
        fenced(command, "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def run_markdown(report: RunReport) -> str:
    """The ladder, the gates and the notes of a run."""
    parts = [f"# {text(report.pipeline)}", ladder_table(report.ladder)]
    parts += [
        "Changes are against the step's parent; ≈ marks one that is within noise: the 95 % intervals overlap."
    ]
    if report.ladder.has_stand_in:
        parts += [text(formats.STAND_IN_EXPLAINED)]
    if report.gates:
        parts += ["## Gates", gates_table(report.gates)]
    if report.gains:
        parts += ["## What each step won", table(GAIN_COLUMNS, map(gain_cells, report.gains))]
        if why := reasons(report.gains):
            parts += ["\n".join(f"- **{text(step)}** is {text(line)}" for step, line in why)]
    if slices := report.ladder.slices():
        parts += ["## Slices", _slices(report.ladder, slices)]
    if notes := report.all_notes():
        parts += [
            "## Notes",
            "\n".join(f"- **{text(step)}**: {text(line)}" for step, line in notes),
        ]
    last = report.steps[-1].artifact.manifest
    parts += [
        "## Environment",
        table(("", ""), facts.environment(last)),
        "## Reproduce",
        fenced(report.command, "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def ladder_table(ladder: Ladder) -> str:
    """One row a step; under each figure the change against the parent."""
    headers = ("step", "kind", *(formats.label(name) for name in ladder.columns), "built in")
    rows = [
        (
            row.step,
            row.kind.value,
            *(_figure(row, name) for name in ladder.columns),
            formats.duration(row.seconds),
        )
        for row in ladder.rows
    ]
    return table(headers, rows)


def gates_table(gates: Sequence[GateResult]) -> str:
    """Every gate with its verdict."""
    return table(COLUMNS, [gate_row(gate).cells for gate in gates])


def change_text(change: Change, unit: str) -> str:
    """``−1.2 pts`` for shares, ``×0.25`` for the rest, ``≈`` before what is within noise."""
    if change.verdict == "same":
        return "="
    moved = (
        formats.difference(change.absolute, unit)
        if unit == "fraction"
        else formats.ratio(change.ratio)
    )
    return f"≈ {moved}" if change.verdict == "noise" else moved


def tone(change: Change) -> str:
    """How a change is coloured: its verdict, but nothing where it is too small to show in three digits."""
    return "same" if formats.ratio(change.ratio) == "×1.00" else change.verdict


def _figure(row: LadderRow, name: str) -> str:
    metric = row.metrics.get(name)
    if metric is None:
        return formats.DASH
    change = row.against_parent.get(name)
    mark = formats.STAND_IN if row.stood_in_for(name) else ""
    return (
        _with_interval(metric) + mark + (f" ({change_text(change, metric.unit)})" if change else "")
    )


def _with_interval(metric: Metric | None) -> str:
    interval = formats.interval(metric)
    return formats.metric(metric) + (f" [{interval}]" if interval else "")


def _metrics(metrics: Iterable[Metric]) -> str:
    rows = [
        (
            formats.label(metric.name),
            formats.metric(metric),
            formats.interval(metric),
            str(metric.samples),
        )
        for metric in metrics
    ]
    return table(("metric", "value", "95 % interval", "samples"), rows)


def _slices(ladder: Ladder, slices: Sequence[str]) -> str:
    primary = ladder.primary
    rows = [row for row in ladder.rows if any(f"{primary}[{one}]" in row.metrics for one in slices)]
    cells = [
        (
            formats.readable_slice(one),
            *(_with_interval(row.metrics.get(f"{primary}[{one}]")) for row in rows),
        )
        for one in slices
    ]
    return table((f"{formats.label(str(primary))} of", *(row.step for row in rows)), cells)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; every cell is escaped."""
    lines = [[text(header) for header in headers], ["---"] * len(headers)]
    body = [[text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (*lines, *body))


def text(raw: str) -> str:
    """``raw`` on one line, with nothing in it that Markdown or HTML would act on."""
    return _SPECIAL.sub(r"\\\1", " ".join(raw.split()))


def fenced(raw: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", raw)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{raw}\n{fence}"
