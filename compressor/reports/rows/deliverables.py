"""The files that a run was made for, compared with the model that it started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import GateResult
from compressor.reports.rows import formatting
from compressor.reports.rows.changes import change_text
from compressor.reports.rows.ladder import Change, Ladder, LadderRow, change

TORCH = "torch"
"""Runtime of the models that passes still work on."""
_COMPARED = ("size_bytes", "latency_p50_ms", "macs")


@dataclass(frozen=True, slots=True)
class Deliverable:
    """A model that leaves the pipeline."""

    row: LadderRow
    runtime: str
    """The runtime that it was made for."""
    changes: Mapping[str, Change]
    """Changes against the ladder's baseline: accuracies, size, MACs, and latency, which may have
    been measured in another runtime."""
    passed: bool
    """False if a gate of the step failed."""
    best: tuple[str, ...] = ()
    """Its distinctions among the models of its runtime that passed their gates: ``smallest``,
    ``fastest``, ``most accurate``."""


def find_deliverables(ladder: Ladder, gates: Sequence[GateResult]) -> list[Deliverable]:
    """Return the last steps of all branches, and the measured models that other runtimes load.

    Models of one runtime stand together; those with distinctions come first.
    """
    parents = {row.parent for row in ladder.rows}
    failed = {gate.step for gate in gates if not gate.passed}
    baseline = ladder.baseline
    candidates = [
        Deliverable(row, row.runtime or row.format, _changes(ladder, row), row.step not in failed)
        for row in ladder.rows
        if row is not baseline
        and (row.step not in parents or (row.runtime != TORCH and _is_measured(ladder, row)))
    ]
    runtimes = dict.fromkeys(candidate.runtime for candidate in candidates)
    return [
        judged
        for runtime in runtimes
        for judged in _judge(ladder, [c for c in candidates if c.runtime == runtime])
    ]


def _is_measured(ladder: Ladder, row: LadderRow) -> bool:
    return not row.metrics.keys().isdisjoint((*ladder.accuracy, "latency_p50_ms"))


def _changes(ladder: Ladder, row: LadderRow) -> dict[str, Change]:
    """Return the changes of a row against the ladder's baseline."""
    baseline = ladder.baseline
    return {
        name: change(row.metrics[name], baseline.metrics[name], baseline.step)
        for name in (*ladder.accuracy, *_COMPARED)
        if name in row.metrics and name in baseline.metrics
    }


def _judge(ladder: Ladder, candidates: Sequence[Deliverable]) -> list[Deliverable]:
    """Return the models of one runtime with their distinctions, those that have one first."""
    passed = [c for c in candidates if c.passed and _is_measured(ladder, c.row)]
    best: dict[str, list[str]] = {candidate.row.step: [] for candidate in candidates}
    for title, name in (
        ("smallest", "size_bytes"),
        ("fastest", "latency_p50_ms"),
        ("most accurate", ladder.primary),
    ):
        measured = [c for c in passed if name is not None and name in c.row.metrics]
        if name is not None and len(measured) > 1:
            best[min(measured, key=_rank(name)).row.step].append(title)
    judged = [replace(c, best=tuple(best[c.row.step])) for c in candidates]
    return sorted(judged, key=lambda c: -len(c.best))


def _rank(name: str) -> Callable[[Deliverable], float]:
    """Return the key that puts the best value first; engines are compared by their weights."""

    def rank(candidate: Deliverable) -> float:
        row = candidate.row
        metric = row.metrics["weight_bytes" if row.hides_change(name) else name]
        return metric.value if metric.better == "lower" else -metric.value

    return rank


def columns(ladder: Ladder) -> tuple[str, ...]:
    """Return the metrics by which deliverables are compared."""
    return tuple(name for name in (*ladder.accuracy, *_COMPARED) if name in ladder.columns)


def cells(deliverable: Deliverable, ladder: Ladder) -> list[str]:
    """Return the values and changes of a deliverable, in the order of ``columns``."""
    return [_cell(deliverable, name) for name in columns(ladder)]


def _cell(deliverable: Deliverable, name: str) -> str:
    row = deliverable.row
    metric = row.metrics.get(name)
    if metric is None:
        return formatting.DASH
    mark = formatting.STAND_IN if row.is_stand_in(name) else ""
    change = deliverable.changes.get(name)
    remarks = [change_text(change, metric.unit)] if change is not None else []
    if row.hides_change(name):
        remarks = [row.remark(name)]
    return f"{formatting.metric(metric)}{mark}" + (f" ({', '.join(remarks)})" if remarks else "")


def distinction(deliverable: Deliverable) -> str:
    """Return what a deliverable is best at, or that it failed a gate; may be empty."""
    return ", ".join(deliverable.best) if deliverable.passed else "failed a gate"


def against_baseline(ladder: Ladder) -> str:
    """Return the baseline in one line: ``teacher (top-1 84.8 %, 2.68 MB, 8.41 ms in torch)``."""
    row = ladder.baseline
    facts = [
        f"{formatting.label(name)} {formatting.metric(row.metrics[name])}"
        for name in ladder.accuracy
        if name in row.metrics
    ]
    facts += [formatting.size(row.metrics["size_bytes"].value)]
    facts += [in_runtime(metric, row) for metric in (row.metrics.get("latency_p50_ms"),) if metric]
    return f"{row.step} ({', '.join(facts)})"


def in_runtime(latency: Metric, row: LadderRow) -> str:
    """Return a latency with the runtime that it was measured in: ``8.41 ms in torch``."""
    return f"{formatting.metric(latency)} in {row.runtime}"
