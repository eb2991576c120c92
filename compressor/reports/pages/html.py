"""Write report.html, one self-contained page of an artifact or a run: no scripts, no network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.manifest import Manifest, Metric
from compressor.evaluation.records import Measurement
from compressor.reports.pages import charts
from compressor.reports.rows import (
    artifact,
    deliverables,
    formatting,
    gains,
    gates,
    model_files,
)
from compressor.reports.rows.changes import change_text, tone
from compressor.reports.rows.ladder import Ladder, LadderRow
from compressor.reports.rows.run import RunReport
from compressor.reports.rows.tree import branches, tree_rows

if TYPE_CHECKING:
    from jinja2 import Environment

_LATENCIES = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput")


def artifact_html(
    manifest: Manifest, measurement: Measurement | None, command: str, model: Path | None = None
) -> str:
    """Return the page of one artifact.

    Args:
        manifest: The artifact's manifest.
        measurement: What was measured when the artifact was built, if anything.
        command: The command line that reproduces the artifact.
        model: The model's folder, for its calibration table.
    """
    slices = artifact.slices(manifest)
    calibrated = model_files.read_calibration(model) if model is not None else []
    return _render(
        "artifact.html.j2",
        manifest=manifest,
        slices=slices,
        slice_metrics=artifact.slice_metrics(slices),
        headline=artifact.headline(manifest),
        measurement_notes=artifact.measurement_notes(measurement),
        latency_rows=artifact.latency_rows(manifest),
        config_json=json.dumps(manifest.pass_.config, indent=2, ensure_ascii=False),
        figures=_artifact_figures(manifest, measurement, calibrated),
        calibrated=calibrated,
        command=command,
    )


def _artifact_figures(
    manifest: Manifest, measurement: Measurement | None, calibrated: list[model_files.Range]
) -> dict[str, str]:
    """Return the charts of an artifact as SVG, by name."""
    figures: dict[str, str] = {}
    if rows := _artifact_slices(manifest):
        figures["slices"] = charts.intervals("slices", rows)
    if measurement is not None and (latency := measurement.latency) is not None:
        figures["latency"] = charts.latencies("latency", [("", latency.milliseconds)])
        figures["calls"] = charts.calls("calls", latency.milliseconds)
    history = artifact.history(manifest)
    if charts.history_keys(history):
        figures["history"] = charts.history("history", history)
    if calibrated:
        figures["ranges"] = charts.ranges("ranges", model_files.most_clipped(calibrated))
    if (errors := artifact.heat_map(manifest)) is not None:
        figures["errors"] = charts.heat_map("errors", errors)
    return figures


def _artifact_slices(manifest: Manifest) -> dict[str, list[tuple[str, Metric]]]:
    """Return the first metric that slices have: of the whole set, and of each slice."""
    slices = artifact.slices(manifest)
    primary = next(iter(artifact.slice_metrics(slices)), None)
    if primary is None:
        return {}
    whole = manifest.metric(primary)
    rows = {"all": [(manifest.step, whole)]} if whole is not None else {}
    return rows | {
        row.name: [(manifest.step, row.metrics[primary])]
        for row in slices
        if primary in row.metrics
    }


def run_html(report: RunReport, folder: Path, digest: str) -> str:
    """Return the page of a run.

    Args:
        report: The run.
        folder: The folder of the page; links to the artifacts' pages are relative to it.
        digest: Digest of the report, written into the page's head.
    """
    ladder = report.ladder
    return _render(
        "run.html.j2",
        report=report,
        ladder=ladder,
        digest=digest,
        tree_rows=tree_rows(ladder),
        gates=[(result, gates.sentence(result)) for result in report.gates],
        gains=[gains.gain_cells(gain) for gain in report.gains],
        gain_columns=gains.COLUMNS,
        gain_reasons=gains.reasons_not_faster(report.gains),
        figures=_run_figures(report),
        trade_offs=_trade_offs(ladder),
        histories=_histories(report),
        links={step: _link(path, folder) for step, path in report.paths.items()},
        tree=branches(ladder),
        roles={step.step: _extra_inputs(step.artifact.manifest, ladder) for step in report.steps},
        slices=[(name, dict(entries)) for name, entries in _run_slices(ladder).items()],
        latency_names=_LATENCIES,
        manifest=report.steps[-1].artifact.manifest,
        command=report.command,
    )


def _run_figures(report: RunReport) -> dict[str, str]:
    """Return the charts of a run as SVG, by name."""
    ladder = report.ladder
    figures = {}
    if rows := _run_slices(ladder):
        figures["slices"] = charts.intervals("slices", rows)
    timed = [
        (step.step, latency.milliseconds)
        for step in report.steps
        if (latency := model_files.read_latency(step.artifact)) is not None
    ]
    if timed:
        figures["latency"] = charts.latencies("latency", timed)
    return figures


def _trade_offs(ladder: Ladder) -> list[tuple[str, str]]:
    """Return title and chart of accuracy against size, and against latency in each runtime."""
    runtimes = dict.fromkeys(row.runtime for row in ladder.rows)
    choices = [("Accuracy against size", "size_bytes", ladder.rows)] + [
        (
            f"Accuracy against latency in {runtime}",
            "latency_p50_ms",
            tuple(row for row in ladder.rows if row.runtime == runtime),
        )
        for runtime in runtimes
    ]
    points = [(title, _points(rows, ladder.primary, cost)) for title, cost, rows in choices]
    return [
        (title, charts.trade_off(f"trade-off-{index}", entries))
        for index, (title, entries) in enumerate(points)
        if len(entries) > 1
    ]


def _points(rows: Iterable[LadderRow], gain: str | None, cost: str) -> list[charts.Point]:
    """Return the points of a chart; an engine's size is that of its weights, not its kernels."""
    return [
        charts.Point(row.step, _weights_or(cost, row), row.metrics[gain])
        for row in rows
        if gain is not None and gain in row.metrics and cost in row.metrics
    ]


def _weights_or(cost: str, row: LadderRow) -> Metric:
    weights = row.metrics.get("weight_bytes")
    return weights if cost == "size_bytes" and weights is not None else row.metrics[cost]


def _run_slices(ladder: Ladder) -> dict[str, list[tuple[str, Metric]]]:
    """Return the primary metric of each step: on the whole set, and by slice."""
    slices = {name: f"{ladder.primary}[{name}]" for name in ladder.slices()}
    if not slices:
        return {}
    return {
        name: [(row.step, row.metrics[metric]) for row in ladder.rows if metric in row.metrics]
        for name, metric in {"all": str(ladder.primary), **slices}.items()
    }


def _histories(report: RunReport) -> list[tuple[str, str]]:
    """Return step and chart for every training history."""
    histories = [(step.step, artifact.history(step.artifact.manifest)) for step in report.steps]
    return [
        (step, charts.history(f"history-{index}", entries))
        for index, (step, entries) in enumerate(histories)
        if charts.history_keys(entries)
    ]


def _extra_inputs(manifest: Manifest, ladder: Ladder) -> list[tuple[str, str]]:
    """Return role and step (or id) of every input beside the parent, such as a teacher."""
    steps = {row.id: row.step for row in ladder.rows}
    return [
        (role, steps.get(artifact_id, formatting.short_id(artifact_id)))
        for role, artifact_id in manifest.parents.items()
        if role != "parent"
    ]


def _link(artifact_path: Path, folder: Path) -> str:
    return Path(os.path.relpath(artifact_path / "report.html", folder)).as_posix()


def _render(template: str, **values: Any) -> str:
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
    functions: Mapping[str, Any] = {
        "artifact": artifact,
        "deliverables": deliverables,
        "formatting": formatting,
        "change_text": change_text,
        "tone": tone,
        "style": Markup((folder / "style.css").read_text("utf-8")),  # noqa: S704 - our own file
    }
    environment.globals.update(functions)
    environment.filters["figure"] = Markup  # our own SVG, whose labels matplotlib has escaped
    return environment
