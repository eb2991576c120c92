"""Collect the rows of an artifact's report from its manifest, for console and pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.artifacts.manifest import Manifest, Metric
from compressor.evaluation.records import EnergyReport, GenerationReport, Measurement
from compressor.reports.rows import formatting
from compressor.reports.rows.formatting import accuracy_names

_HEADLINE_COSTS = (
    *("latency_p50_ms", "throughput", "first_token_ms", "tokens_per_second", "kv_cache_bytes"),
    *("parameters", "macs", "peak_rss_bytes", "energy_mj"),
)
_OF_LATENCY = frozenset(
    {
        *("throughput", "peak_rss_bytes", "energy_mj"),
        *("first_token_ms", "tokens_per_second", "kv_cache_bytes", "generation_peak_rss_bytes"),
    }
)
"""Metrics of ``latency.json`` and ``generation.json`` beside latencies."""
_SECTIONS = frozenset({"history", "notes"})
"""Keys of a manifest's summary that have sections of their own."""

Pairs = list[tuple[str, str]]
"""Label and text, one row each."""


def about(manifest: Manifest) -> Pairs:
    """Return what identifies the artifact: step, pass, format, id, size and cost of building."""
    pass_ = manifest.pass_
    code = f", code {formatting.short_id(pass_.code)}" if pass_.code else ""
    return [
        ("Step", manifest.step),
        ("Pass", f"{pass_.name} version {pass_.version}{code}"),
        ("Format", manifest.format),
        ("Id", manifest.id),
        ("Model size", formatting.size(manifest.model_bytes)),
        ("Built", f"{manifest.created} in {formatting.duration(manifest.seconds)}"),
        ("Peak memory of the pass", formatting.size(manifest.peak_rss_bytes)),
        ("Seed", str(manifest.seed)),
    ]


def lineage(manifest: Manifest) -> Pairs:
    """Return the ids of the parents by role, and the digests of the data sets."""
    parents = manifest.parents.items()
    return [
        *((role, formatting.short_id(parent)) for role, parent in parents),
        *((f"data: {name}", formatting.short_id(digest)) for name, digest in manifest.data.items()),
    ]


def environment(manifest: Manifest) -> Pairs:
    """Return the machine that built the artifact, and the versions of the libraries."""
    machine = manifest.environment
    return [
        ("CPU", f"{machine.cpu}, {machine.cores} cores"),
        ("Memory", formatting.size(machine.memory_bytes)),
        ("Device", machine.device),
        ("Threads", str(machine.threads)),
        ("Platform", machine.platform),
        ("Python", machine.python),
        *sorted(manifest.tools.items()),
    ]


def config(manifest: Manifest) -> Pairs:
    """Return the pass's configuration as dotted keys and JSON values."""
    return flatten(manifest.pass_.config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Pairs:
    """Return a nested mapping as dotted keys and JSON values; strings stay as they are."""
    rows: Pairs = []
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            rows += flatten(value, path)
        elif isinstance(value, str):
            rows.append((path, value))
        else:
            rows.append((path, json.dumps(value, ensure_ascii=False)))
    return rows


def headline(manifest: Manifest) -> list[Metric]:
    """Return the few metrics shown at the top: accuracies, then the main costs."""
    accuracy = accuracy_names((metric.name, metric.unit) for metric in manifest.metrics)
    names = (*accuracy, *_HEADLINE_COSTS)
    return [metric for name in names if (metric := manifest.metric(name)) is not None]


def latency_rows(manifest: Manifest) -> list[Metric]:
    """Return latency percentiles and mean, throughput and peak memory."""
    return [
        metric
        for metric in manifest.metrics
        if metric.name.startswith("latency_") or metric.name in _OF_LATENCY
    ]


@dataclass(frozen=True, slots=True)
class SliceRow:
    """The metrics of one slice of the evaluation set."""

    name: str
    samples: int
    metrics: Mapping[str, Metric]


def slices(manifest: Manifest) -> list[SliceRow]:
    """Return the metrics grouped by slice."""
    by_slice: dict[str, dict[str, Metric]] = {}
    for metric in manifest.metrics:
        base, bracket, rest = metric.name.partition("[")
        if bracket and rest.endswith("]"):
            by_slice.setdefault(rest[:-1], {})[base] = metric
    return [
        SliceRow(name, max(metric.samples for metric in metrics.values()), metrics)
        for name, metrics in by_slice.items()
    ]


def slice_metrics(rows: Sequence[SliceRow]) -> list[str]:
    """Return the names of the metrics that any slice has."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """A list of records with equal keys in a pass's summary, such as the widths cut per axis."""

    name: str
    records: Sequence[Mapping[str, Any]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of the records."""
        return tuple(self.records[0])

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The values of the records as text."""
        return [
            tuple(format_value(record[column]) for column in self.columns)
            for record in self.records
        ]


def summary_tables(manifest: Manifest) -> list[SummaryTable]:
    """Return every list of records with equal keys in the pass's summary."""
    return [
        SummaryTable(name, value)
        for name, value in manifest.summary.items()
        if name not in _SECTIONS and _is_table(value)
    ]


def _is_table(value: Any) -> bool:
    """Return True for a list of mappings that all have the same keys in the same order."""
    if not (isinstance(value, list) and value and isinstance(value[0], Mapping)):
        return False
    columns = tuple(value[0])
    return all(isinstance(record, Mapping) and tuple(record) == columns for record in value)


def format_value(value: Any) -> str:
    """Format a value of a record: four digits for floats, thousands separators for integers."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def summary(manifest: Manifest) -> Pairs:
    """Return the pass's summary without history, notes and tables: they have own sections."""
    separate = _SECTIONS | {table.name for table in summary_tables(manifest)}
    return flatten({key: value for key, value in manifest.summary.items() if key not in separate})


def notes(manifest: Manifest) -> list[str]:
    """Return the notes that the pass left for the user."""
    lines = manifest.summary.get("notes", [])
    if isinstance(lines, Sequence) and not isinstance(lines, str):
        return [str(line) for line in lines]
    return [str(lines)]


def history(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return the training history, or an empty list if the pass recorded none."""
    entries = manifest.summary.get("history")
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, Mapping)]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Quantization errors by linear layer (rows) and decoder layer (columns)."""

    linears: Sequence[str]
    layers: Sequence[int]
    errors: Mapping[tuple[str, int], float]


def heat_map(manifest: Manifest) -> HeatMap | None:
    """Return the first summary table with the columns `layer`, `linear` and `error`; else None."""
    for table in summary_tables(manifest):
        if {"layer", "linear", "error"} <= set(table.columns):
            errors = {
                (str(record["linear"]), int(record["layer"])): float(record["error"])
                for record in table.records
            }
            linears, layers = (list(dict.fromkeys(keys)) for keys in zip(*errors, strict=True))
            return HeatMap(linears, layers, errors)
    return None


def measurement_notes(measurement: Measurement | None) -> list[str]:
    """Return sentences on how accuracy and latency were measured."""
    if measurement is None:
        return []
    lines = []
    if (accuracy := measurement.accuracy) is not None:
        lines.append(
            f"Accuracy on {accuracy.samples} samples of {accuracy.data}, with 95 % intervals."
        )
        if accuracy.reference is not None:
            reference = formatting.short_id(accuracy.reference)
            lines.append(
                f"Agreement and KL divergence compare with the outputs of artifact {reference}."
            )
        lines += [f"{note[0].upper()}{note[1:]}." for note in accuracy.notes]
    if measurement.stand_in is not None:
        lines.append(
            f"A stand-in was measured: {measurement.stand_in}. Accuracy is that of the ONNX graph "
            "that the engine was built from, in ONNX Runtime. Latency was not measured."
        )
    if (latency := measurement.latency) is not None:
        threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
        lines.append(
            f"Latency with {latency.runtime}, batch size {latency.batch_size}, {threads}: "
            f"{len(latency.milliseconds)} timed calls after {latency.warmup} warm-up calls, "
            "in a separate process."
        )
        lines += energy_lines(latency.energy)
    return lines + generation_lines(measurement.generation)


def generation_lines(generation: GenerationReport | None) -> list[str]:
    """Return how generation was measured, or why it was not."""
    if generation is None:
        return []
    if generation.reason is not None:
        return [f"Generation was not measured: {generation.reason}."]
    threads = f"{generation.threads} thread{'s' if generation.threads != 1 else ''}"
    return [
        f"Generation with {generation.runtime}, {threads}: {len(generation.first_token_ms)} "
        f"answers of {generation.new_tokens} tokens to prompts of {generation.prompt_tokens} "
        "tokens, one sequence at a time, in a separate process."
    ]


def energy_lines(energy: EnergyReport | None) -> list[str]:
    """Return how energy was measured, or that this machine has no counter."""
    if energy is None:
        return []
    if energy.meter is None:
        return ["Energy was not measured: this machine has no counter that can be read."]
    return [
        f"Energy of {energy.samples} samples in {energy.seconds:.1f} s by {energy.meter}, "
        "idle power included."
    ]
