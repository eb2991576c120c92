"""The ladder: one row per step of a run, with metrics and their change against earlier steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.lineage import closest_relatives
from compressor.artifacts.manifest import Metric
from compressor.reports.rows import formatting

_COSTS = (
    *("latency_p50_ms", "throughput", "first_token_ms", "tokens_per_second", "size_bytes"),
    *("parameters", "macs", "peak_rss_bytes", "energy_mj"),
    *("kv_cache_bytes", "generation_peak_rss_bytes"),
)
_RUNTIME_COSTS = frozenset(
    {
        *("throughput", "peak_rss_bytes", "energy_mj"),
        *("first_token_ms", "tokens_per_second", "generation_peak_rss_bytes"),
    }
)
"""Costs beside latencies that depend on the runtime."""

Verdict = Literal["better", "worse", "same", "noise"]


@dataclass(frozen=True, slots=True)
class LadderInput:
    """One step of a run; a ladder takes them in run order."""

    step: str
    artifact: Artifact
    cached: bool
    """True if the artifact was taken from the store."""
    parent: str | None
    """The step whose artifact was read; None for the source."""
    runtime: str | None
    """The runtime of the artifact's format; None if nothing executes it."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True
    )


class Change(_Part):
    """Change of a metric against another row."""

    against: str
    """Step of the other row."""
    absolute: float
    """New value minus old value."""
    ratio: float | None
    """New value divided by old value; None if the old value is 0."""
    verdict: Verdict
    """``noise`` if the 95 % intervals overlap, so that the measurement cannot separate the two."""


class LadderRow(_Part):
    """One step with its metrics."""

    step: str
    name: str
    """Name of the artifact's directory."""
    id: str
    format: Annotated[
        str, Field(validation_alias=AliasChoices("format", "kind"), serialization_alias="kind")
    ]
    """Format of the model; the JSON key is ``kind``, as in manifests."""
    runtime: str | None
    """The runtime that latency and memory were measured in; None if nothing executes the format."""
    pass_name: str
    parent: str | None
    cached: bool
    metrics: dict[str, Metric]
    model_bytes: int
    seconds: float
    """Wall time of the pass, in the run that built the artifact."""
    peak_rss_bytes: int
    """Peak memory of the pass; the metric of the same name is that of inference."""
    changes: dict[str, Change]
    """Changes against the closest related row that is comparable: an ancestor that has the metric,
    and for latency, throughput and memory one of the same runtime, or else a step that was made
    from a common ancestor."""

    def remark(self, name: str) -> str:
        """Return what a number needs beside it: a latency's runtime, or an engine's weights."""
        if name == "latency_p50_ms":
            return self.runtime or ""
        if self.hides_change(name):
            return f"weights {formatting.metric(self.metrics['weight_bytes'])}"
        return ""

    def hides_change(self, name: str) -> bool:
        """Return True for the size of an engine: its parent has weights, but no kernels."""
        return name == "size_bytes" and "weight_bytes" in self.metrics

    def is_stand_in(self, name: str) -> bool:
        """Return True if a metric was measured on the engine's graph, not on the engine."""
        executed = self.metrics.get("executed")
        return executed is not None and executed.value == 0 and name not in _COSTS


class Ladder(_Part):
    """All rows of a run, and the metrics that get a column."""

    accuracy: tuple[str, ...]
    """Accuracy metrics of the whole set, in the order of the pipeline."""
    columns: tuple[str, ...]
    """The accuracy metrics, then every cost that was measured."""
    rows: tuple[LadderRow, ...]

    @property
    def baseline(self) -> LadderRow:
        """The row that deliverables are compared with: the first whose accuracy was measured."""
        measured = (row for row in self.rows if not row.metrics.keys().isdisjoint(self.accuracy))
        return next(measured, self.rows[0])

    @property
    def primary(self) -> str | None:
        """Name of the accuracy metric that charts show: the first that should be high."""
        for name in self.accuracy:
            if any(
                row.metrics[name].better == "higher" for row in self.rows if name in row.metrics
            ):
                return name
        return None

    @property
    def has_stand_in(self) -> bool:
        """True if any accuracy was measured on a stand-in."""
        return any(
            name in row.metrics and row.is_stand_in(name)
            for row in self.rows
            for name in self.accuracy
        )

    def row(self, step: str) -> LadderRow:
        """Return the row of a step."""
        return next(row for row in self.rows if row.step == step)

    def slices(self) -> tuple[str, ...]:
        """Return the slices of the primary metric that any row has, such as ``input=speech``."""
        prefix = f"{self.primary}["
        names = (name for row in self.rows for name in row.metrics)
        return tuple(
            dict.fromkeys(
                name[len(prefix) : -1]
                for name in names
                if name.startswith(prefix) and name.endswith("]")
            )
        )


def build_ladder(steps: Sequence[LadderInput]) -> Ladder:
    """Build the ladder of a run's artifacts."""
    parents = {step.step: step.parent for step in steps}
    rows: dict[str, LadderRow] = {step.step: _row(step) for step in steps}
    compared = tuple(
        row.model_copy(
            update={"changes": _changes(row, closest_relatives(row.step, parents), rows)}
        )
        for row in rows.values()
    )
    measured = {name for row in compared for name in row.metrics}
    accuracy = formatting.accuracy_names(
        (metric.name, metric.unit) for row in compared for metric in row.metrics.values()
    )
    costs = tuple(name for name in _COSTS if name in measured)
    return Ladder(accuracy=accuracy, columns=accuracy + costs, rows=compared)


def _changes(
    row: LadderRow, relatives: Sequence[str], rows: Mapping[str, LadderRow]
) -> dict[str, Change]:
    """Return the change of each metric against the closest relative that it compares with."""
    changes = {}
    for name, metric in row.metrics.items():
        for relative in relatives:
            other = rows.get(relative)
            if other is not None and name in other.metrics and _is_comparable(name, row, other):
                changes[name] = change(metric, other.metrics[name], relative)
                break
    return changes


def _is_comparable(name: str, row: LadderRow, other: LadderRow) -> bool:
    """Return True unless the metric depends on the runtime and the runtimes differ."""
    depends = name.startswith("latency_") or name in _RUNTIME_COSTS
    return not depends or row.runtime == other.runtime


def change(new: Metric, old: Metric, against: str) -> Change:
    """Return the change from ``old``, measured on the step ``against``, to ``new``."""
    return Change(
        against=against,
        absolute=new.value - old.value,
        ratio=new.value / old.value if old.value else None,
        verdict=_verdict(new, old),
    )


def _verdict(new: Metric, old: Metric) -> Verdict:
    if new.value == old.value:
        return "same"
    if _low(new) <= _high(old) and _low(old) <= _high(new):
        return "noise"
    return "better" if (new.value > old.value) == (new.better == "higher") else "worse"


def _low(metric: Metric) -> float:
    return metric.value if metric.low is None else metric.low


def _high(metric: Metric) -> float:
    return metric.value if metric.high is None else metric.high


def _row(step: LadderInput) -> LadderRow:
    manifest = step.artifact.manifest
    metrics = {metric.name: metric for metric in manifest.metrics}
    metrics.setdefault("size_bytes", _size(manifest.model_bytes))
    return LadderRow(
        step=step.step,
        name=step.artifact.name,
        id=manifest.id,
        format=manifest.format,
        runtime=step.runtime,
        pass_name=manifest.pass_.name,
        parent=step.parent,
        cached=step.cached,
        metrics=metrics,
        model_bytes=manifest.model_bytes,
        seconds=manifest.seconds,
        peak_rss_bytes=manifest.peak_rss_bytes,
        changes={},
    )


def _size(model_bytes: int) -> Metric:
    """Return the size as a metric, for artifacts that were not measured."""
    return Metric(name="size_bytes", value=model_bytes, unit="bytes", better="lower", samples=1)
