"""Verdicts with intervals: a rule passes or fails if its 95 % interval is clear of the limit.

If the interval contains the limit, the verdict is undecided, and the rule states what that means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import GateResult
from compressor.engine import events
from compressor.engine.gates.measured_model import MeasuredModel
from compressor.engine.gates.rules import Rule
from compressor.engine.gates.stopping_rule import measure_until_clear
from compressor.engine.machine import environment
from compressor.errors import GpuError
from compressor.evaluation import intervals
from compressor.evaluation.interleaved import RoundTimer
from compressor.evaluation.metrics import metric_named

Array = np.ndarray[Any, Any]
OpenTimer = Callable[[Artifact, str], RoundTimer]
"""Opens an artifact's model in a process of its own, to be timed for a metric."""
_REMEASURED = ("latency_", "throughput")


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The quantity that a rule limits: a value, a drop below the reference, or a ratio to it."""

    value: float
    interval: tuple[float, float] | None
    """95 % interval; None if none is known."""
    basis: str
    """Evidence behind the interval, such as ``2000 paired samples``."""


class GateChecker:
    """Checks gate rules, and measures latency again where the recorded intervals cannot decide.

    Args:
        open_timer: opens models to be timed again; None if there is no data to feed them. Recorded
            latencies decide then.
        earlier: verdicts of latency gates from earlier runs, by their key.
        listener: receives progress events.
    """

    def __init__(
        self,
        open_timer: OpenTimer | None,
        earlier: Mapping[str, GateResult],
        listener: events.Listener = lambda _: None,
    ) -> None:
        self._open_timer, self._earlier, self._listener = open_timer, earlier, listener

    def __call__(
        self, rule: Rule, model: MeasuredModel, reference: MeasuredModel | None
    ) -> GateResult:
        """Return the verdict on one rule."""
        new = model.metrics.get(rule.metric)
        old = reference.metrics.get(rule.metric) if reference is not None else None
        if new is None:
            return _missing(rule, model, f"{model.name} has no {rule.metric}", None)
        if rule.is_relative and (reference is None or old is None):
            return _missing(rule, model, f"{rule.against} has no {rule.metric} in this run", new)
        compared = reference if rule.is_relative else None
        if self._can_remeasure(rule, model, compared):
            key = _key(rule, model, compared)
            if key in self._earlier:
                return self._earlier[key]
            try:
                estimate = self._remeasure(rule, model, compared)
            except GpuError:  # the model cannot run here: the recorded value decides
                return _result(rule, model, (new, old), _from_records(rule, model, compared))
            return _result(rule, model, (new, old), estimate).model_copy(update={"key": key})
        return _result(rule, model, (new, old), _from_records(rule, model, compared))

    def _can_remeasure(
        self, rule: Rule, model: MeasuredModel, reference: MeasuredModel | None
    ) -> bool:
        timed = rule.judge == "interval" and rule.metric.startswith(_REMEASURED)
        sides = [side for side in (model, reference) if side is not None]
        return (
            timed
            and self._open_timer is not None
            and all(side.artifact is not None for side in sides)
        )

    def _remeasure(
        self, rule: Rule, model: MeasuredModel, reference: MeasuredModel | None
    ) -> _Estimate:
        """Time the model and its reference until the interval is clear of the limit."""
        assert self._open_timer is not None  # noqa: S101 - the caller checked
        with ExitStack() as stack:
            timers = [
                stack.enter_context(self._open_timer(side.artifact, rule.metric))
                for side in (model, reference)
                if side is not None and side.artifact is not None
            ]
            for timer in timers:
                timer.ready()
            first = cycle(range(len(timers)))

            def measure_round() -> float:
                # The order alternates, so that each side inherits the other's caches equally often.
                start = next(first)
                order = (*timers[start:], *timers[:start])
                values = {timer: timer.measure_round(rule.metric) for timer in order}
                return _limited_quantity(rule, *(values[timer] for timer in timers))

            rounds = measure_until_clear(
                measure_round,
                lambda low, high: _is_clear(rule, low, high),
                max_rounds=rule.budget.rounds,
                seconds=rule.budget.seconds,
                progress=lambda done: self._listener(
                    events.GateProgress(rule.label, done, rule.budget.rounds)
                ),
            )
        interval = (rounds.low, rounds.high) if math.isfinite(rounds.high - rounds.low) else None
        basis = f"{rounds.count} interleaved rounds" if reference else f"{rounds.count} rounds"
        return _Estimate(rounds.median, interval, basis)


def _limited_quantity(rule: Rule, new: float, old: float = 0.0) -> float:
    """Return the quantity that the rule limits, from the values of both sides."""
    if rule.bound == "max_drop":
        return old - new
    if rule.bound == "max_ratio":
        if old:
            return new / old
        return 1.0 if new == old else math.inf  # such as the KL divergence of the source itself
    return new


def _from_records(rule: Rule, model: MeasuredModel, reference: MeasuredModel | None) -> _Estimate:
    """Estimate from recorded metrics: sample by sample if both have the same, else by intervals."""
    new = model.metrics[rule.metric]
    if reference is None:
        return _Estimate(new.value, _interval(new), _basis(new))
    old = reference.metrics[rule.metric]
    value = _limited_quantity(rule, new.value, old.value)
    if (pairs := _sample_pairs(rule.metric, model, reference)) is not None:
        return _Estimate(value, _paired_interval(rule, *pairs), f"{len(pairs[0])} paired samples")
    new_interval, old_interval = _interval(new), _interval(old)
    if new_interval is None or old_interval is None:
        return _Estimate(value, None, _basis(new if new_interval is None else old))
    if new_interval[0] == new_interval[1] and old_interval[0] == old_interval[1]:
        return _Estimate(value, (value, value), _basis(new))
    if rule.bound == "max_drop":
        interval = intervals.difference_interval(old.value, old_interval, new.value, new_interval)
    else:
        interval = intervals.ratio_interval(new.value, new_interval, old.value, old_interval)
    return _Estimate(value, interval, "both intervals")


def _sample_pairs(
    metric: str, model: MeasuredModel, reference: MeasuredModel
) -> tuple[Array, Array] | None:
    """Return the per-sample values of both sides; None unless the samples are the same."""
    new, old = model.samples, reference.samples
    if new is None or old is None or new.of != old.of:
        return None
    new_values, old_values = new.values.get(metric), old.values.get(metric)
    if not new_values or not old_values or len(new_values) != len(old_values):
        return None
    return np.asarray(new_values, np.float64), np.asarray(old_values, np.float64)


def _paired_interval(rule: Rule, new_N: Array, old_N: Array) -> tuple[float, float]:
    if rule.bound == "max_drop" and np.isin(np.concatenate([new_N, old_N]), (0.0, 1.0)).all():
        return intervals.paired_proportion_interval(old_N, new_N)
    from_mean = np.vectorize(metric_named(rule.metric).from_mean, otypes=[float])
    quantity = np.vectorize(lambda new, old: _limited_quantity(rule, new, old))
    return intervals.paired_mean_interval(
        new_N, old_N, lambda new_R, old_R: quantity(from_mean(new_R), from_mean(old_R))
    )


def _interval(metric: Metric) -> tuple[float, float] | None:
    if metric.low is not None and metric.high is not None:
        return metric.low, metric.high
    return (metric.value, metric.value) if metric.samples == 1 else None


def _basis(metric: Metric) -> str:
    if metric.samples == 1:
        return "one measurement" if metric.name == "peak_rss_bytes" else "exact count"
    suffix = "" if metric.low is not None else ", without an interval"
    return f"{metric.samples} samples{suffix}"


def _is_clear(rule: Rule, low: float, high: float) -> bool:
    """Return True if the whole interval lies on one side of the limit; the limit itself passes."""
    if rule.bound == "min":
        return low >= rule.limit or high < rule.limit
    return high <= rule.limit or low > rule.limit


def _key(rule: Rule, model: MeasuredModel, reference: MeasuredModel | None) -> str:
    sides = [side for side in (model, reference) if side is not None]
    return digest_json(
        {
            "rule": rule.label,
            "models": [side.id for side in sides],
            "measured": [side.artifact.manifest.measured for side in sides if side.artifact],
            "machine": environment(0, "").cpu,
        }
    )


def _result(
    rule: Rule,
    model: MeasuredModel,
    metrics: tuple[Metric, Metric | None],
    estimate: _Estimate,
) -> GateResult:
    new, old = metrics
    at_least = rule.bound == "min"
    keeps_limit = estimate.value >= rule.limit if at_least else estimate.value <= rule.limit
    low, high = estimate.interval or (None, None)
    clear = low is not None and high is not None and _is_clear(rule, low, high)
    decided = rule.judge == "value" or clear
    quantity = _format(estimate.value)
    if low is not None and high is not None and low != high:
        quantity += f" ({_format(low)} to {_format(high)})"
    relations = ("at least", "below") if at_least else ("at most", "above")
    relation = f"is {relations[not keeps_limit]}" if decided else "cannot be told from"
    return GateResult(
        gate=rule.label,
        step=model.name,
        metric=rule.metric,
        bound=rule.bound,
        unit=new.unit,
        value=new.value,
        reference=old.value if old is not None and rule.is_relative else None,
        found=estimate.value,
        low=low,
        high=high,
        limit=rule.limit,
        basis=estimate.basis,
        decided=decided,
        passed=keeps_limit if decided else rule.undecided == "pass",
        reason=f"{quantity} {relation} {_format(rule.limit)}",
    )


def _missing(rule: Rule, model: MeasuredModel, reason: str, new: Metric | None) -> GateResult:
    return GateResult(
        gate=rule.label,
        step=model.name,
        metric=rule.metric,
        bound=rule.bound,
        value=new.value if new is not None else None,
        limit=rule.limit,
        passed=False,
        reason=reason,
    )


def _format(value: float) -> str:
    """Format byte counts in full, fractions with six significant digits."""
    return f"{value:,.0f}" if 1e5 <= abs(value) < math.inf else f"{value:.6g}"
