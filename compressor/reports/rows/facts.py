"""What a report of one artifact says, as rows of text; Markdown and HTML only lay it out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading
from compressor.artifacts.manifest import Manifest, Metric
from compressor.errors import DamagedArtifactError
from compressor.evaluation.records import LatencyReport, Measurement
from compressor.reports.rows import formats
from compressor.reports.rows.ladder import accuracy_names

ACCURACY_FILE = "reports/accuracy.json"
CALIBRATION_FILE = "calibration.json"
LATENCY_FILE = "reports/latency.json"
_OWN_SECTIONS = frozenset({"history", "notes"})  # of a manifest's summary


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One slice of the whole set's metrics."""

    name: str
    samples: int
    metrics: Mapping[str, Metric]


def headline(manifest: Manifest) -> list[Metric]:
    """The few figures that stand at the top."""
    wanted = (
        *accuracy_names(manifest.metrics),
        "latency_p50_ms",
        "throughput",
        "parameters",
        "macs",
        "peak_rss_bytes",
    )
    return [metric for name in wanted if (metric := manifest.metric(name)) is not None]


def slices(manifest: Manifest) -> list[SliceRow]:
    """The metrics of each slice."""
    found: dict[str, dict[str, Metric]] = {}
    for metric in manifest.metrics:
        base, bracket, rest = metric.name.partition("[")
        if bracket and rest.endswith("]"):
            found.setdefault(rest[:-1], {})[base] = metric
    return [
        SliceRow(name, max(m.samples for m in metrics.values()), metrics)
        for name, metrics in found.items()
    ]


def latency_rows(manifest: Manifest) -> list[Metric]:
    """Percentiles, mean, throughput, memory."""
    return [
        m
        for m in manifest.metrics
        if m.name.startswith("latency_") or m.name in {"throughput", "peak_rss_bytes"}
    ]


def about(manifest: Manifest) -> list[tuple[str, str]]:
    """What the artifact is."""
    pass_ = manifest.pass_
    return [
        ("Step", manifest.step),
        (
            "Pass",
            f"{pass_.name} version {pass_.version}"
            + (f", code {formats.short(pass_.code)}" if pass_.code else ""),
        ),
        ("Kind", manifest.kind.value),
        ("Id", manifest.id),
        ("Model size", formats.size(manifest.model_bytes)),
        ("Built", f"{manifest.created} in {formats.duration(manifest.seconds)}"),
        ("Peak memory of the pass", formats.size(manifest.peak_rss_bytes)),
        ("Seed", str(manifest.seed)),
    ]


def lineage(manifest: Manifest) -> list[tuple[str, str]]:
    """Role to id of what it was made from, and the data."""
    return [
        *((role, formats.short(parent)) for role, parent in manifest.parents.items()),
        *((f"data: {name}", formats.short(digest)) for name, digest in manifest.data.items()),
    ]


def environment(manifest: Manifest) -> list[tuple[str, str]]:
    """The machine and the versions."""
    place = manifest.environment
    return [
        ("CPU", f"{place.cpu}, {place.cores} cores"),
        ("Memory", formats.size(place.memory_bytes)),
        ("Device", place.device),
        ("Threads", str(place.threads)),
        ("Platform", place.platform),
        ("Python", place.python),
        *sorted(manifest.tools.items()),
    ]


def flat(tree: Mapping[str, Any], at: str = "") -> list[tuple[str, str]]:
    """A nested record as dotted keys and JSON values."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        where = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping) and value:
            rows += flat(value, where)
        else:
            rows.append(
                (where, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return rows


def summary(manifest: Manifest) -> list[tuple[str, str]]:
    """What the pass tells of its choices; history, notes and tables have sections of their own."""
    shown = _OWN_SECTIONS | {name for name, _, _ in tables(manifest)}
    return flat({key: value for key, value in manifest.summary.items() if key not in shown})


def tables(manifest: Manifest) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """What the pass tells as records of equal keys, such as the cut of each width: name, columns, rows."""
    found = []
    for name, value in manifest.summary.items():
        if name in _OWN_SECTIONS or not (
            isinstance(value, list) and value and isinstance(value[0], Mapping)
        ):
            continue
        columns = tuple(value[0])
        if all(isinstance(record, Mapping) and tuple(record) == columns for record in value):
            found.append(
                (
                    name,
                    columns,
                    [tuple(_cell(record[column]) for column in columns) for record in value],
                )
            )
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def heat_map(
    manifest: Manifest,
) -> tuple[list[str], list[int], dict[tuple[str, int], float]] | None:
    """Where a table of the pass tells an error by `layer` and `linear`: linear layers, decoder layers, errors; else None."""
    for _, columns, _ in tables(manifest):
        if {"layer", "linear", "error"} <= set(columns):
            records = next(
                value
                for value in manifest.summary.values()
                if isinstance(value, list) and tuple(value[0]) == columns
            )
            values = {
                (str(one["linear"]), int(one["layer"])): float(one["error"]) for one in records
            }
            linears, layers = (list(dict.fromkeys(keys)) for keys in zip(*values, strict=True))
            return linears, layers, values
    return None


@dataclass(frozen=True, slots=True)
class Range:
    """Where the values of one calibrated tensor lie, and where its integers end."""

    tensor: str
    values: int
    minimum: float
    maximum: float
    bound: float
    """The largest magnitude that its integers reach: what lies beyond is clipped."""


def most_clipped(ranges: Sequence[Range], most: int = 60) -> list[Range]:
    """As many as a picture can hold: those whose integers end furthest below what was seen; in their own order."""
    by_clipping = sorted(
        ranges, key=lambda one: one.bound / (max(abs(one.minimum), abs(one.maximum)) or 1.0)
    )
    kept = {one.tensor for one in by_clipping[:most]}
    return [one for one in ranges if one.tensor in kept]


def calibration(model: Path) -> list[Range]:
    """What ``calibration.json`` of a model folder tells; nothing for a folder that has none.

    Raises:
        DamagedArtifactError: it is there and cannot be understood.
    """
    file = model / CALIBRATION_FILE
    if not file.is_file():
        return []
    with reading(file):
        text = file.read_bytes()
    try:
        return [
            Range(
                name,
                int(one["values"]),
                float(one["minimum"]),
                float(one["maximum"]),
                float(one["bound"]),
            )
            for name, one in json.loads(text)["tensors"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifactError(f"{file} is no calibration table: {error}") from error


def notes(manifest: Manifest) -> list[str]:
    """The lines that the pass left for a person."""
    found = manifest.summary.get("notes", [])
    return (
        [str(line) for line in found]
        if isinstance(found, Sequence) and not isinstance(found, str)
        else [str(found)]
    )


def history(manifest: Manifest) -> list[Mapping[str, Any]]:
    """The training history, if the pass recorded one."""
    found = manifest.summary.get("history")
    return (
        [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    )


def engine(model: Path) -> list[tuple[str, str]]:
    """What engine.json (or bundle.json) of a model folder tells; nothing for a folder that has none.

    Raises:
        DamagedArtifactError: it is there and cannot be understood.
    """
    from compressor.runtimes.tensorrt.files import (
        BUNDLE,
        ENGINE,
        read_engine_manifest,
    )  # numpy comes with it

    if (model / BUNDLE).is_file():
        return [("no engine", "a build bundle"), *flat(json.loads((model / BUNDLE).read_bytes()))]
    if not (model / ENGINE).is_file():
        return []
    found = read_engine_manifest(model)
    level = (
        "the backend's own" if found.optimization_level is None else str(found.optimization_level)
    )
    shapes = {
        name: [list(one.min), list(one.opt), list(one.max)] for name, one in found.profiles.items()
    }
    rows = [
        ("built by", f"{found.backend} {found.backend_version}"),
        ("precision", f"{found.precision}, the rest {found.floats}"),
        ("workspace, effort", f"{found.workspace_mb} MiB, {level}"),
        *(
            (f"profile {name}", f"from {low} over {best} to {high}")
            for name, (low, best, high) in shapes.items()
        ),
        *((f"input {one.name}", f"{one.dtype} {list(one.shape)}") for one in found.inputs),
        *((f"output {one.name}", f"{one.dtype} {list(one.shape)}") for one in found.outputs),
        (
            "layers of the network",
            ", ".join(f"{count} {name}" for name, count in found.layer_types.items()),
        ),
        *((name, f"sha256 {sha256}") for name, sha256 in found.onnx.items()),
    ]
    for one in found.engines:
        ran = f"ran on {one.device}" if one.executed else "never executed"
        rows += [
            (one.file, f"for {one.target}, {formats.size(one.bytes)}, {ran}, sha256 {one.sha256}")
        ]
        rows += [(f"{one.file} warns", warning) for warning in one.warnings]
    return rows


def how_measured(measurement: Measurement | None) -> list[str]:
    """One sentence each on how accuracy and latency were taken."""
    lines = []
    if measurement is not None and (accuracy := measurement.accuracy) is not None:
        lines.append(
            f"Accuracy on {accuracy.samples} samples of {accuracy.data}; intervals are 95 %."
        )
        if accuracy.reference is not None:
            lines.append(
                f"Agreement and KL divergence are with the answers of artifact {formats.short(accuracy.reference)}."
            )
    if measurement is not None and measurement.stand_in is not None:
        lines.append(
            f"A stand-in was measured: {measurement.stand_in}. What accuracy there is, is that of the ONNX graph which the "
            "engine was built from, in ONNX Runtime. Latency was not measured."
        )
    if measurement is not None and (latency := measurement.latency) is not None:
        plural = "s" if latency.threads != 1 else ""
        lines.append(
            f"Latency with {latency.runtime}, batch size {latency.batch_size}, {latency.threads} thread{plural}: "
            f"{len(latency.milliseconds)} timed calls after {latency.warmup} for warm-up, in a process of its own."
        )
    return lines


def read_latency(artifact: Path) -> LatencyReport | None:
    """``reports/latency.json`` of an artifact directory, or None where latency was not measured.

    Raises:
        DamagedArtifactError: it is there and cannot be understood.
    """
    file = artifact / LATENCY_FILE
    if not file.is_file():
        return None
    with reading(file):
        text = file.read_bytes()
    try:
        return LatencyReport.model_validate_json(text)
    except ValueError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
