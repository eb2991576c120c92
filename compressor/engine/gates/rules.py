"""Gates: limits that the figures of a run must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from compressor.artifacts.runs import GateResult
from compressor.artifacts.store import Artifact
from compressor.config.discovery import suggestion
from compressor.engine.gates.metrics import Figures, counterpart, figures_at
from compressor.engine.plan.pipeline import SOURCE, BudgetConfig, GateConfig, Pipeline, reference_of
from compressor.errors import Problem
from compressor.evaluation.metrics import referring

Bound = Literal["min", "max", "max_drop", "max_ratio"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
COUNTED = ("size_bytes", "parameters", "macs")
TIMED = (
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_mean_ms",
    "throughput",
    "peak_rss_bytes",
)
Judge = Callable[["Rule", Figures, Figures | None], GateResult]


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
            found.append(
                pipeline.document.problem((*at, "metric"), what, remedy=suggestion(base, metrics))
            )
        for key, name in (("step", gate.step), ("against", gate.against)):
            if key == "against" and name is not None and is_path(name):
                if not (pipeline.base / name).exists():
                    what = f"there is no {pipeline.base / name}"
                    found.append(
                        pipeline.document.problem(
                            (*at, key), what, expected="an artifact, a run or a store"
                        )
                    )
            elif (
                name is not None
                and name not in steps
                and not (key == "against" and name == "parent")
            ):
                what = f"there is no step {name!r}"
                found.append(
                    pipeline.document.problem((*at, key), what, remedy=suggestion(name, steps))
                )
            elif name in early and referring([base]):
                what = f"{name!r} comes before {reference!r}, the reference: {base} is not measured of it"
                found.append(
                    pipeline.document.problem((*at, key), what, remedy=f"one of {', '.join(after)}")
                )
    return found


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit on one metric."""

    metric: str
    bound: Bound
    limit: float
    against: str | None
    """What it is called that the metric is compared with."""
    judge: Literal["interval", "value"] = "interval"
    undecided: Literal["fail", "pass"] = "fail"
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    @property
    def is_relative(self) -> bool:
        """Whether something is compared with."""
        return self.bound in {"max_drop", "max_ratio"}

    @property
    def label(self) -> str:
        """As ``top1 max_drop 0.01 against student``."""
        return f"{self.metric} {self.bound} {self.limit:g}" + (
            f" against {self.against}" if self.is_relative else ""
        )


def rules_of(gate: GateConfig, against: str | None) -> tuple[Rule, ...]:
    """The limits of one gate; ``against`` is what its own ``against`` comes to."""
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
    judge: Judge,
) -> tuple[GateResult, ...]:
    """Judge every gate whose step is in ``artifacts`` (step to artifact)."""
    last = pipeline.steps[-1].name if pipeline.steps else SOURCE
    figures = {name: Figures.of(artifact, name) for name, artifact in artifacts.items()}
    found = []
    for gate in pipeline.config.gates:
        step = gate.step or last
        if step not in figures:
            continue
        against = parents.get(step) if gate.against == "parent" else gate.against
        if against is not None and is_path(against):
            reference = counterpart(figures_at(pipeline.base / against), step)
        else:
            reference = figures.get(against or "")
        found += [judge(rule, figures[step], reference) for rule in rules_of(gate, against)]
    return tuple(found)


def is_path(against: str) -> bool:
    """Whether ``against`` leads out of the pipeline; no step's name has a slash."""
    return "/" in against
