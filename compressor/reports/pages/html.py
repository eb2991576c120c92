"""report.html: one self-contained page of an artifact, or of a run. No script, no network."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.manifest import Manifest, Metric
from compressor.evaluation.records import Measurement
from compressor.reports.pages import charts
from compressor.reports.pages.markdown import change_text, tone
from compressor.reports.rows import facts, formats
from compressor.reports.rows.gain_rows import COLUMNS, gain_cells, reasons
from compressor.reports.rows.gate_rows import gate_row
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport

if TYPE_CHECKING:
    from jinja2 import Environment


def artifact_html(
    manifest: Manifest, measurement: Measurement | None, command: str, model: Path | None = None
) -> str:
    """The page of one artifact; of ``model``, its folder, the calibration is shown."""
    slices = facts.slices(manifest)
    primary = next((name for row in slices for name in row.metrics), None)
    latency = measurement.latency if measurement is not None else None
    history = facts.history(manifest)
    figures: dict[str, str] = {}
    if primary is not None:
        whole = {"all": [(manifest.step, metric)]} if (metric := manifest.metric(primary)) else {}
        rows = {
            row.name: [(manifest.step, row.metrics[primary])]
            for row in slices
            if primary in row.metrics
        }
        figures["slices"] = charts.intervals("slices", {**whole, **rows})
    if latency is not None:
        figures["latency"] = charts.latencies("latency", [("", latency.milliseconds)])
        figures["calls"] = charts.calls("calls", latency.milliseconds)
    if charts.history_keys(history):
        figures["history"] = charts.history("history", history)
    calibrated = facts.calibration(model) if model is not None else []
    if calibrated:
        figures["ranges"] = charts.ranges("ranges", facts.most_clipped(calibrated))
    if (errors := facts.heat_map(manifest)) is not None:
        figures["errors"] = charts.heat_map("errors", *errors)
    return _page(
        "artifact.html.j2",
        manifest=manifest,
        slices=slices,
        slice_metrics=list(dict.fromkeys(name for row in slices for name in row.metrics)),
        headline=facts.headline(manifest),
        how_measured=facts.how_measured(measurement),
        latency_rows=facts.latency_rows(manifest),
        config_json=json.dumps(manifest.pass_.config, indent=2, ensure_ascii=False),
        figures=figures,
        calibrated=calibrated,
        command=command,
    )


def run_html(report: RunReport, folder: Path, digest: str) -> str:
    """The page of a run; links lead from ``folder`` to the artifacts' own pages."""
    ladder = report.ladder
    last = report.steps[-1].artifact.manifest
    return _page(
        "run.html.j2",
        report=report,
        gains=[gain_cells(one) for one in report.gains],
        gain_columns=COLUMNS,
        gain_reasons=reasons(report.gains),
        gates=[(gate, gate_row(gate)) for gate in report.gates],
        ladder=ladder,
        digest=digest,
        figures=_run_figures(report),
        histories=_histories(report),
        links={step: _link(path, folder) for step, path in report.paths.items()},
        tree=_tree(ladder),
        roles={step.step: _other_parents(step.artifact.manifest, ladder) for step in report.steps},
        slices=_slice_table(ladder),
        latency_names=("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput"),
        manifest=last,
        hero=_hero(ladder),
        stand_in=ladder.has_stand_in,
        command=report.command,
    )


def _run_figures(report: RunReport) -> dict[str, str]:
    ladder = report.ladder
    figures = {}
    for name, cost in (("by-latency", "latency_p50_ms"), ("by-size", "size_bytes")):
        points = _points(ladder, cost)
        if len(points) > 1:
            figures[name] = charts.trade_off(name, points)
    if rows := _slice_metrics(ladder):
        figures["slices"] = charts.intervals("slices", rows)
    timed = [
        (step, found.milliseconds)
        for step, path in report.paths.items()
        if (found := facts.read_latency(path))
    ]
    if timed:
        figures["latency"] = charts.latencies("latency", timed)
    return figures


def _points(ladder: Ladder, cost: str) -> list[charts.Point]:
    gain = ladder.primary
    return [
        charts.Point(row.step, row.metrics[cost], row.metrics[gain])
        for row in ladder.rows
        if gain in row.metrics and cost in row.metrics
    ]


def _slice_metrics(ladder: Ladder) -> dict[str, list[tuple[str, Metric]]]:
    names = {"all": ladder.primary, **{one: f"{ladder.primary}[{one}]" for one in ladder.slices()}}
    if len(names) == 1:
        return {}
    return {
        one: [(row.step, row.metrics[name]) for row in ladder.rows if name in row.metrics]
        for one, name in names.items()
    }


def _slice_table(ladder: Ladder) -> list[tuple[str, dict[str, Metric]]]:
    return [(one, dict(entries)) for one, entries in _slice_metrics(ladder).items()]


def _histories(report: RunReport) -> list[tuple[str, str]]:
    found = ((step.step, facts.history(step.artifact.manifest)) for step in report.steps)
    return [
        (step, charts.history(f"history-{at}", entries))
        for at, (step, entries) in enumerate(found)
        if charts.history_keys(entries)
    ]


@dataclass(frozen=True, slots=True)
class Branch:
    """A step and what was made from it."""

    row: LadderRow
    children: tuple[Branch, ...]


def _tree(ladder: Ladder, parent: str | None = None) -> tuple[Branch, ...]:
    """The steps below ``parent``; those whose parent is not in the ladder stand at the top."""
    known = {row.step for row in ladder.rows}
    below = (row for row in ladder.rows if (row.parent if row.parent in known else None) == parent)
    return tuple(Branch(row, _tree(ladder, row.step)) for row in below)


def _other_parents(manifest: Manifest, ladder: Ladder) -> list[tuple[str, str]]:
    steps = {row.id: row.step for row in ladder.rows}
    return [
        (role, steps.get(parent, formats.short(parent)))
        for role, parent in manifest.parents.items()
        if role != "parent"
    ]


def _hero(ladder: Ladder) -> list[tuple[str, Metric, Metric]]:
    """The last row against the first measured one: the run in a few figures."""
    last = ladder.rows[-1]
    wanted = [
        name
        for name in (ladder.primary, "latency_p50_ms", "size_bytes", "parameters")
        if name in last.metrics
    ]
    found = []
    for name in wanted:
        if name is not None and name in last.against_first:
            first = ladder.row(last.against_first[name].against)
            found.append((name, first.metrics[name], last.metrics[name]))
    return found


def _link(artifact: Path, folder: Path) -> str:
    return Path(os.path.relpath(artifact / "report.html", folder)).as_posix()


def _page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(facts=facts, formats=formats, change_text=change_text, tone=tone)
    environment.globals["style"] = Markup((folder / "style.css").read_text("utf-8"))  # noqa: S704 - our own file
    environment.filters["figure"] = Markup  # SVG of ours, whose labels matplotlib has escaped
    return environment
