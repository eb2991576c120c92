"""Gates: limits that the figures of a run must keep."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.artifacts.manifest import Manifest, Metric
from compressor.config.discovery import suggestion
from compressor.engine.events import GateResult
from compressor.engine.pipeline import SOURCE, GateConfig, Pipeline, reference_of
from compressor.errors import Problem
from compressor.evaluation.metrics import referring

COUNTED = ("size_bytes", "parameters", "macs")
TIMED = (
    "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_mean_ms", "throughput", "peak_rss_bytes",
)  # fmt: skip


def gate_problems(pipeline: Pipeline) -> list[Problem]:
    """Gates that name a metric that nothing measures, or not of that step, or a step that is not there."""
    evaluate = pipeline.config.evaluate
    metrics = list(COUNTED)
    metrics += evaluate.accuracy.metrics if evaluate.accuracy else ()
    metrics += TIMED if evaluate.latency else ()
    steps = [SOURCE, *(step.name for step in pipeline.steps)]
    reference = reference_of(evaluate)
    first = steps.index(reference) if reference in steps else 0
    early, after = steps[:first], steps[first:]
    found = []
    for index, gate in enumerate(pipeline.config.gates):
        at = ("gates", index)
        base = gate.metric.split("[", 1)[0]
        if base not in metrics:
            what = f"nothing measures {gate.metric!r}"
            found.append(pipeline.document.problem((*at, "metric"), what, remedy=suggestion(base, metrics)))
        for field, name in (("step", gate.step), ("against", gate.against)):
            if name is not None and name not in steps and not (field == "against" and name == "parent"):
                what = f"there is no step {name!r}"
                found.append(pipeline.document.problem((*at, field), what, remedy=suggestion(name, steps)))
            elif name in early and referring([base]):
                what = f"{name!r} comes before {reference!r}, the reference: {base} is not measured of it"
                found.append(pipeline.document.problem((*at, field), what, remedy=f"one of {', '.join(after)}"))
    return found


def check_gates(
    pipeline: Pipeline, manifests: Mapping[str, Manifest], parents: Mapping[str, str | None]
) -> tuple[GateResult, ...]:
    """Judge every gate whose step is in ``manifests`` (step name to manifest)."""
    last = pipeline.steps[-1].name if pipeline.steps else SOURCE
    return tuple(
        result
        for gate in pipeline.config.gates
        if (step := gate.step or last) in manifests
        for result in _judge(gate, step, manifests, parents)
    )


def _judge(
    gate: GateConfig, step: str, manifests: Mapping[str, Manifest], parents: Mapping[str, str | None]
) -> list[GateResult]:
    metric = manifests[step].metric(gate.metric)
    against = parents.get(step) if gate.against == "parent" else gate.against
    reference = manifests[against].metric(gate.metric) if against is not None and against in manifests else None
    results = []
    for kind, limit in (
        ("min", gate.min),
        ("max", gate.max),
        ("max_drop", gate.max_drop),
        ("max_ratio", gate.max_ratio),
    ):
        if limit is None:
            continue
        relative = kind in {"max_drop", "max_ratio"}
        label = f"{gate.metric} {kind} {limit:g}" + (f" against {against}" if relative else "")
        if metric is None:
            results.append(GateResult(label, step, gate.metric, None, None, False, f"{step} has no {gate.metric}"))
        elif relative and reference is None:
            reason = f"{against} has no {gate.metric} in this run"
            results.append(GateResult(label, step, gate.metric, metric.value, None, False, reason))
        else:
            results.append(_verdict(label, kind, limit, step, metric, reference))
    return results


def _verdict(label: str, kind: str, limit: float, step: str, metric: Metric, reference: Metric | None) -> GateResult:
    base = reference.value if reference is not None else 0.0
    bound = {"min": limit, "max": limit, "max_drop": base - limit, "max_ratio": base * limit}[kind]
    lower_bound = kind in {"min", "max_drop"}
    passed = metric.value >= bound if lower_bound else metric.value <= bound
    reason = f"{_figure(metric.value)} {'≥' if lower_bound else '≤'} {_figure(bound)}"
    return GateResult(label, step, metric.name, metric.value, bound, passed, reason if passed else f"not {reason}")


def _figure(value: float) -> str:
    """A count of bytes in full, a fraction to six digits."""
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.6g}"
