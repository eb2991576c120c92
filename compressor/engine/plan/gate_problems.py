"""Check the ``gates:`` of a pipeline: measured metrics, and existing steps and baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator

from compressor.config.discovery import suggestion
from compressor.config.document import Location
from compressor.engine.plan.config import SOURCE, GateConfig
from compressor.engine.plan.pipeline import Pipeline, reference_of
from compressor.errors import Problem
from compressor.evaluation.metrics import is_metric, metric_named, reference_metrics

COST_METRICS = ("size_bytes", "parameters", "macs")
LATENCY_METRICS = (
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_mean_ms",
    "throughput",
    "peak_rss_bytes",
)
GENERATION_METRICS = (
    "first_token_ms",
    "tokens_per_second",
    "kv_cache_bytes",
    "generation_peak_rss_bytes",
)
ENERGY_METRIC = "energy_mj"

_ANY_COST = (0.0, math.inf)
_LARGEST = 1e18
"""Larger than any size, time or loss."""


def is_path(against: str) -> bool:
    """Return True if a reference lies outside the pipeline; step names have no slash."""
    return "/" in against


def gate_problems(pipeline: Pipeline) -> list[Problem]:
    """Return the gates that name unmeasured metrics or unknown steps."""
    return list(_GateProblems(pipeline).find())


class _GateProblems:
    def __init__(self, pipeline: Pipeline) -> None:
        evaluate = pipeline.config.evaluate
        self.pipeline = pipeline
        self.metrics = [
            *COST_METRICS,
            *(evaluate.accuracy.metrics if evaluate.accuracy else ()),
            *(LATENCY_METRICS if evaluate.latency else ()),
            *(GENERATION_METRICS if evaluate.generation else ()),
            *((ENERGY_METRIC,) if evaluate.energy else ()),
        ]
        self.steps = [SOURCE, *(step.name for step in pipeline.steps)]
        self.reference = reference_of(evaluate)
        first = self.steps.index(self.reference) if self.reference in self.steps else 0
        self.before_reference, self.comparable = self.steps[:first], self.steps[first:]

    def find(self) -> Iterator[Problem]:
        problem = self.pipeline.document.problem
        for index, gate in enumerate(self.pipeline.config.gates):
            at = ("gates", index)
            metric = gate.metric.split("[", 1)[0]
            if metric not in self.metrics:
                what = f"nothing measures {gate.metric!r}"
                yield problem((*at, "metric"), what, remedy=suggestion(metric, self.metrics))
            else:
                yield from self._check_limits(gate, metric, at)
            if gate.against is not None and is_path(gate.against):
                path = self.pipeline.base / gate.against
                if not path.exists():
                    expected = "an artifact, a run or a store"
                    yield problem((*at, "against"), f"{path} does not exist", expected=expected)
            elif gate.against not in {None, "parent"}:
                yield from self._check_step(str(gate.against), metric, (*at, "against"))
            if gate.step is not None:
                yield from self._check_step(gate.step, metric, (*at, "step"))
            if gate.against == (gate.step or self.steps[-1]):
                what = f"the gate compares {gate.against!r} with itself"
                yield problem((*at, "against"), what, remedy="name another step, or `parent`")
            if gate in self.pipeline.config.gates[:index]:
                first = self.pipeline.config.gates.index(gate)
                yield problem(at, f"the gate is the same as gates[{first}]", remedy="remove it")

    def _check_limits(self, gate: GateConfig, metric: str, at: Location) -> Iterator[Problem]:
        """Yield the limits that every value of a metric keeps, or none."""
        lowest, highest = metric_named(metric).bounds if is_metric(metric) else _ANY_COST
        span = highest - lowest
        impossible = {
            "min": gate.min is not None and not -_LARGEST < gate.min <= min(highest, _LARGEST),
            "max": gate.max is not None and not lowest <= gate.max < _LARGEST,
            "max_drop": gate.max_drop is not None and abs(gate.max_drop) > min(span, _LARGEST),
        }
        values = f"at least {lowest:g}" if math.isinf(highest) else f"{lowest:g} to {highest:g}"
        remedy = "write 1 % as 0.01" if span == 1 else None
        for name in (name for name, wrong in impossible.items() if wrong):
            what = f"{getattr(gate, name):g} cannot be meant: values of {metric} are {values}"
            yield self.pipeline.document.problem((*at, name), what, remedy=remedy)

    def _check_step(self, name: str, metric: str, at: Location) -> Iterator[Problem]:
        problem = self.pipeline.document.problem
        if name not in self.steps:
            yield problem(at, f"there is no step {name!r}", remedy=suggestion(name, self.steps))
        elif name in self.before_reference and reference_metrics([metric]):
            what = (
                f"{name!r} comes before {self.reference!r}, the reference: "
                f"{metric} is not measured of it"
            )
            yield problem(at, what, remedy=f"one of {', '.join(self.comparable)}")
