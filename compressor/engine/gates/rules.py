"""Gate rules: limits on the metrics of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.runs import GateResult
from compressor.artifacts.trust import signatures_required
from compressor.engine.gates.measured_model import (
    MeasuredModel,
    find_counterpart,
    measured_models_at,
    require_trusted_models,
)
from compressor.engine.plan.config import SOURCE, BudgetConfig, GateConfig
from compressor.engine.plan.gate_problems import is_path
from compressor.engine.plan.pipeline import Pipeline

Bound = Literal["min", "max", "max_drop", "max_ratio"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
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
            references = measured_models_at(pipeline.base / against)
            if signatures_required(pipeline.config.require_signatures):
                require_trusted_models(references, artifacts[step].path.parent)
            reference = find_counterpart(references, step)
        else:
            reference = models.get(against or "")
        results += [check(rule, models[step], reference) for rule in rules_of(gate, against)]
    return tuple(results)
