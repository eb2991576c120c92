"""The ladder: one row a step, and what each step cost and won."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.kinds import Kind
from compressor.artifacts.manifest import Metric
from compressor.artifacts.store import Artifact

_COSTS = ("latency_p50_ms", "throughput", "size_bytes", "parameters", "macs", "peak_rss_bytes")
_COST_UNITS = frozenset({"ms", "s", "bytes", "count", "samples/s"})

Verdict = Literal["better", "worse", "same", "noise"]


@dataclass(frozen=True, slots=True)
class LadderInput:
    """One step of a run, in run order."""

    step: str
    artifact: Artifact
    cached: bool
    parent: str | None
    """The step whose artifact was read; None for the source."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Change(_Part):
    """How a metric moved against another row."""

    against: str
    """That row's step."""
    absolute: float
    ratio: float | None
    """New over old; None where the old value is 0."""
    verdict: Verdict
    """``noise`` where both 95 % intervals overlap, so that the measurement cannot tell the two apart."""


class LadderRow(_Part):
    """One step."""

    step: str
    name: str
    """The artifact's directory."""
    id: str
    kind: Kind
    pass_name: str
    parent: str | None
    cached: bool
    metrics: dict[str, Metric]
    model_bytes: int
    seconds: float
    """Wall time of the pass, in the run that built the artifact."""
    peak_rss_bytes: int
    """Peak memory of the pass; that of inference is the metric of the same name."""
    against_parent: dict[str, Change]
    against_first: dict[str, Change]
    """Against the first row that has the metric: the source, where it was measured."""

    def stood_in_for(self, name: str) -> bool:
        """Whether a figure is not the engine's own, which did not run, but that of the ONNX graph it was built from."""
        executed = self.metrics.get("executed")
        return executed is not None and executed.value == 0 and name not in _COSTS


class Ladder(_Part):
    """All rows, and the metrics worth a column."""

    accuracy: tuple[str, ...]
    """Whole-set accuracy metrics, in the order they were asked for."""
    columns: tuple[str, ...]
    """Those, then the costs that anything was measured of."""
    rows: tuple[LadderRow, ...]

    @property
    def primary(self) -> str | None:
        """The accuracy that plots show: the first of which more is better."""
        for name in self.accuracy:
            if any(
                row.metrics[name].better == "higher" for row in self.rows if name in row.metrics
            ):
                return name
        return None

    @property
    def has_stand_in(self) -> bool:
        """Whether any accuracy is not the artifact's own."""
        return any(
            name in row.metrics and row.stood_in_for(name)
            for row in self.rows
            for name in self.accuracy
        )

    def row(self, step: str) -> LadderRow:
        """The row of a step."""
        return next(row for row in self.rows if row.step == step)

    def slices(self) -> tuple[str, ...]:
        """The slices of the primary metric that any row has, as ``input=speech``."""
        prefix = f"{self.primary}["
        found = (
            name
            for row in self.rows
            for name in row.metrics
            if name.startswith(prefix) and name.endswith("]")
        )
        return tuple(dict.fromkeys(name[len(prefix) : -1] for name in found))


def build_ladder(steps: Sequence[LadderInput]) -> Ladder:
    """The ladder of the artifacts of a run."""
    rows: dict[str, LadderRow] = {}
    first: dict[str, LadderRow] = {}
    for step in steps:
        bare = _row(step)
        parent = rows.get(step.parent) if step.parent is not None else None
        against_first = {
            name: change(metric, first[name].metrics[name], first[name].step)
            for name, metric in bare.metrics.items()
            if name in first
        }
        against_parent = {
            name: change(metric, parent.metrics[name], parent.step)
            for name, metric in bare.metrics.items()
            if parent is not None and name in parent.metrics
        }
        row = bare.model_copy(
            update={"against_parent": against_parent, "against_first": against_first}
        )
        rows[step.step] = row
        for name in row.metrics:
            first.setdefault(name, row)
    accuracy = accuracy_names(metric for row in rows.values() for metric in row.metrics.values())
    costs = tuple(name for name in _COSTS if name in first)
    return Ladder(accuracy=accuracy, columns=accuracy + costs, rows=tuple(rows.values()))


def accuracy_names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The whole-set metrics that are no cost, each once."""
    return tuple(
        dict.fromkeys(
            metric.name
            for metric in metrics
            if metric.unit not in _COST_UNITS and "[" not in metric.name
        )
    )


def change(new: Metric, old: Metric, against: str) -> Change:
    """How ``new`` differs from ``old``."""
    absolute = new.value - old.value
    ratio = new.value / old.value if old.value else None
    return Change(against=against, absolute=absolute, ratio=ratio, verdict=_verdict(new, old))


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
        kind=manifest.kind,
        pass_name=manifest.pass_.name,
        parent=step.parent,
        cached=step.cached,
        metrics=metrics,
        model_bytes=manifest.model_bytes,
        seconds=manifest.seconds,
        peak_rss_bytes=manifest.peak_rss_bytes,
        against_parent={},
        against_first={},
    )


def _size(model_bytes: int) -> Metric:
    """What an unmeasured artifact's manifest knows all the same."""
    return Metric(name="size_bytes", value=model_bytes, unit="bytes", better="lower", samples=1)
