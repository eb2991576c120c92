"""Gate rules: limits on the metrics of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from compressor.artifacts.runs import GateResult
from compressor.artifacts.store import Artifact
from compressor.config.discovery import suggestion
from compressor.engine.gates.measured_model import (
    MeasuredModel,
    find_counterpart,
    measured_models_at,
)
from compressor.engine.plan.config import SOURCE, BudgetConfig, GateConfig
from compressor.engine.plan.pipeline import Pipeline, reference_of
from compressor.errors import Problem
from compressor.evaluation.metrics import referring

Bound = Literal["min", "max", "max_drop", "max_ratio"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
COST_METRICS = ("size_bytes", "parameters", "macs")
LATENCY_METRICS = (
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_mean_ms",
    "throughput",
    "peak_rss_bytes",
)
CheckRule = Callable[["Rule", MeasuredModel, MeasuredModel | None], GateResult]
"""Checks a rule on a model and, for relative rules, its reference."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit on one metric."""

    metric: str
    bound: Bound
    limit: float
    against: str | None
    """Name of the reference, for messages."""
    judge: Literal["interval", "value"] = "interval"
    undecided: Literal["fail", "pass"] = "fail"
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    @property
    def is_relative(self) -> bool:
        """True if the metric is compared with a reference."""
        return self.bound in {"max_drop", "max_ratio"}

    @property
    def label(self) -> str:
        """The rule as text: ``top1 max_drop 0.01 against student``."""
        reference = f" against {self.against}" if self.is_relative else ""
        return f"{self.metric} {self.bound} {self.limit:g}{reference}"


def rules_of(gate: GateConfig, against: str | None) -> tuple[Rule, ...]:
    """Return one rule for each limit of a gate; ``against`` is the resolved reference."""
    limits = ((bound, getattr(gate, bound)) for bound in BOUNDS)
    return tuple(
        Rule(gate.metric, bound, limit, against, gate.judge, gate.undecided, gate.budget)
        for bound, limit in limits
        if limit is not None
    )


def check_gates(
    pipeline: Pipeline,
    artifacts: Mapping[str, Artifact],
    parents: Mapping[str, str | None],
    check: CheckRule,
) -> tuple[GateResult, ...]:
    """Check every gate whose step is in ``artifacts`` (step to artifact)."""
    last = pipeline.steps[-1].name if pipeline.steps else SOURCE
    models = {name: MeasuredModel.of(artifact, name) for name, artifact in artifacts.items()}
    results: list[GateResult] = []
    for gate in pipeline.config.gates:
        step = gate.step or last
        if step not in models:
            continue
        against = parents.get(step) if gate.against == "parent" else gate.against
        if against is not None and is_path(against):
            reference = find_counterpart(measured_models_at(pipeline.base / against), step)
        else:
            reference = models.get(against or "")
        results += [check(rule, models[step], reference) for rule in rules_of(gate, against)]
    return tuple(results)


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
            if gate.against is not None and is_path(gate.against):
                path = self.pipeline.base / gate.against
                if not path.exists():
                    expected = "an artifact, a run or a store"
                    yield problem((*at, "against"), f"{path} does not exist", expected=expected)
            elif gate.against not in {None, "parent"}:
                yield from self._check_step(str(gate.against), metric, (*at, "against"))
            if gate.step is not None:
                yield from self._check_step(gate.step, metric, (*at, "step"))

    def _check_step(self, name: str, metric: str, at: tuple[str | int, ...]) -> Iterator[Problem]:
        problem = self.pipeline.document.problem
        if name not in self.steps:
            yield problem(at, f"there is no step {name!r}", remedy=suggestion(name, self.steps))
        elif name in self.before_reference and referring([metric]):
            what = (
                f"{name!r} comes before {self.reference!r}, the reference: "
                f"{metric} is not measured of it"
            )
            yield problem(at, what, remedy=f"one of {', '.join(self.comparable)}")
