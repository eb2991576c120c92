"""Print artifacts and stores: contents, metrics, verification results, and removed files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.collecting import Collection
from compressor.artifacts.manifest import Metric
from compressor.artifacts.trust import import_of
from compressor.reports.console.terminal import (
    new_table,
    out,
    print_line,
    print_notes,
    print_pairs,
)
from compressor.reports.rows import artifact as rows
from compressor.reports.rows import formatting, model_files

_STORE_METRICS = ("top1", "latency_p50_ms")


def render_artifact(artifact: Artifact) -> None:
    """Print an artifact: identity, configuration, origin, metrics and files."""
    manifest = artifact.manifest
    print_pairs(rows.about(manifest), title=artifact.name)
    print_pairs([(f"config.{name}", value) for name, value in rows.config(manifest)])
    print_pairs(rows.lineage(manifest) + rows.environment(manifest))
    if details := model_files.describe_model(artifact):
        print_pairs(details, title="model")
    notes = list(rows.notes(manifest))
    if (origin := import_of(artifact)) is not None:
        notes.append(str(origin))
    for note in notes:
        print_line(f"note: {note}")
    if manifest.metrics:
        out.print()
        render_metrics("metrics", manifest.metrics)
    out.print()
    table = new_table("file", "size", "sha256")
    for name, entry in manifest.files.items():
        digest = formatting.short_id(entry.sha256)
        table.add_row(Text(name), formatting.size(entry.bytes), digest)
    out.print(table)


def render_metrics(title: str, metrics: Sequence[Metric]) -> None:
    """Print every metric with its interval."""
    table = new_table("metric", "value", "95 % interval", "samples", title=title)
    for metric in metrics:
        cells = (formatting.metric(metric), formatting.interval(metric), str(metric.samples))
        table.add_row(Text(metric.name), *cells)
    out.print(table)


def render_store(root: Path, artifacts: Sequence[Artifact]) -> None:
    """Print all artifacts of a store, one per row."""
    if not artifacts:
        print_line(f"{root} holds no artifacts")
        return
    metrics = map(formatting.label, _STORE_METRICS)
    table = new_table("artifact", "step", "format", "size", *metrics, "created")
    for artifact in artifacts:
        manifest = artifact.manifest
        table.add_row(
            Text(artifact.name),
            Text(manifest.step),
            Text(manifest.format),
            formatting.size(manifest.model_bytes),
            *(formatting.metric(manifest.metric(name)) for name in _STORE_METRICS),
            manifest.created,
        )
    out.print(table)


def render_verification(problems: Mapping[Path, str | None]) -> None:
    """Print each artifact, with its problem if it has one."""
    for path, problem in problems.items():
        mark = "✓" if problem is None else "✗"
        print_line(f"{mark} {path.name}" + (f"\n{problem}" if problem else ""))


def render_garbage(garbage: Collection, *, dry_run: bool) -> None:
    """Print the paths that `gc` removes or would remove, with their sizes in bytes."""
    action = "would remove" if dry_run else "removed"
    print_notes(garbage.notes)
    for path, size in garbage.removed.items():
        print_line(f"{action} {path} ({formatting.size(size)})")
    paths = "1 path" if len(garbage.removed) == 1 else f"{len(garbage.removed)} paths"
    print_line(f"{action} {paths}, {formatting.size(sum(garbage.removed.values()))} in total")
