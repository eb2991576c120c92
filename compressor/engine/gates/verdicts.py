"""Verdicts that know noise: a gate passes or fails where its interval is clear of the limit, and is undecided where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import GateResult
from compressor.artifacts.store import Artifact
from compressor.engine.gates import stopping_rule as turns
from compressor.engine.gates.metrics import Figures
from compressor.engine.gates.rules import Rule
from compressor.engine.machine import environment
from compressor.engine.run import events
from compressor.errors import GpuError
from compressor.evaluation import differences
from compressor.evaluation.interleaved import Player
from compressor.evaluation.metrics import METRICS

Array = np.ndarray[Any, Any]
Open = Callable[[Artifact, str], Player]
"""Opens an artifact's model, to be timed for a metric."""
_IN_ROUNDS = ("latency_", "throughput")


@dataclass(frozen=True, slots=True)
class _Found:
    """What is held against the limit; ``interval`` is None where none is known."""

    value: float
    interval: tuple[float, float] | None
    basis: str


class NoiseAwareJudge:
    """Judges rules.

    Args:
        player: opens models to be timed again; None where there is nothing to feed them: recorded latencies are judged then.
        earlier: verdicts of latency gates by their key.
        listener: told of rounds.
    """

    def __init__(
        self,
        player: Open | None,
        earlier: Mapping[str, GateResult],
        listener: events.Listener = lambda _: None,
    ) -> None:
        self._player, self._earlier, self._listener = player, earlier, listener

    def __call__(self, rule: Rule, step: Figures, reference: Figures | None) -> GateResult:
        """The verdict on one rule."""
        new = step.metrics.get(rule.metric)
        old = reference.metrics.get(rule.metric) if reference is not None else None
        if new is None:
            return _missing(rule, step, f"{step.name} has no {rule.metric}", None)
        if rule.is_relative and (reference is None or old is None):
            return _missing(rule, step, f"{rule.against} has no {rule.metric} in this run", new)
        other = reference if rule.is_relative else None
        timed = rule.judge == "interval" and rule.metric.startswith(_IN_ROUNDS)
        if (
            self._player is None
            or not timed
            or any(one.artifact is None for one in (step, other) if one)
        ):
            return _result(rule, step, new, old, _recorded(rule, step, other, new, old))
        key = _key(rule, step, other)
        if key in self._earlier:
            return self._earlier[key]
        try:
            found = self._in_rounds(rule, step, other)
        except GpuError:
            return _result(rule, step, new, old, _recorded(rule, step, other, new, old))
        return _result(rule, step, new, old, found).model_copy(update={"key": key})

    def _in_rounds(self, rule: Rule, step: Figures, reference: Figures | None) -> _Found:
        """Measured anew, in turns with the reference, until the interval is clear of the limit."""
        assert self._player is not None  # noqa: S101 - the caller looked
        with ExitStack() as stack:
            sides = [
                stack.enter_context(self._player(one.artifact, rule.metric))
                for one in (step, reference)
                if one is not None and one.artifact is not None
            ]
            for side in sides:
                side.ready()
            first = cycle(range(len(sides)))

            def one() -> float:
                at = next(
                    first
                )  # who goes first changes: what the one leaves behind in caches, it leaves to both in turn
                figures = {side: side.round(rule.metric) for side in (*sides[at:], *sides[:at])}
                return _held(rule, *(figures[side] for side in sides))

            rounds = turns.play(
                one,
                lambda low, high: _clear(rule, low, high),
                rounds=rule.budget.rounds,
                seconds=rule.budget.seconds,
                progress=lambda done: self._listener(
                    events.GateProgress(rule.label, done, rule.budget.rounds)
                ),
            )
        interval = (rounds.low, rounds.high) if math.isfinite(rounds.high - rounds.low) else None
        return _Found(
            rounds.median, interval, f"{rounds.count} rounds" + (" in turns" if reference else "")
        )


def _held(rule: Rule, new: float, old: float = 0.0) -> float:
    """What is held against the limit, of the figures of both sides."""
    if rule.bound == "max_drop":
        return old - new
    if rule.bound == "max_ratio":
        return new / old if old else math.inf
    return new


def _recorded(
    rule: Rule, step: Figures, reference: Figures | None, new: Metric, old: Metric | None
) -> _Found:
    """From what was measured when the artifacts were made: in pairs where it can be, or from both intervals."""
    if reference is None or old is None:
        return _Found(new.value, _interval(new), _basis(new))
    value = _held(rule, new.value, old.value)
    if (pairs := _pairs(rule.metric, step, reference)) is not None:
        interval = _paired(rule, *pairs)
        return _Found(value, interval, f"{len(pairs[0])} samples in pairs")
    ours, theirs = _interval(new), _interval(old)
    if ours is None or theirs is None:
        return _Found(value, None, _basis(new if ours is None else old))
    if rule.bound == "max_drop":
        interval = differences.difference(old.value, theirs, new.value, ours)
    else:
        interval = differences.ratio(new.value, ours, old.value, theirs)
    exact = ours[0] == ours[1] and theirs[0] == theirs[1]
    return _Found(
        value, (value, value) if exact else interval, _basis(new) if exact else "both intervals"
    )


def _pairs(metric: str, step: Figures, reference: Figures) -> tuple[Array, Array] | None:
    """The values of each sample on both sides, where these are the same samples in the same order."""
    new, old = step.samples, reference.samples
    if new is None or old is None or new.of != old.of:
        return None
    ours, theirs = new.values.get(metric), old.values.get(metric)
    if not ours or not theirs or len(ours) != len(theirs):
        return None
    return np.asarray(ours, np.float64), np.asarray(theirs, np.float64)


def _paired(rule: Rule, new_N: Array, old_N: Array) -> tuple[float, float]:
    if rule.bound == "max_drop" and np.isin(np.concatenate([new_N, old_N]), (0.0, 1.0)).all():
        return differences.paired_shares(old_N, new_N)
    told = np.vectorize(METRICS[rule.metric].told, otypes=[float])
    return differences.paired_means(
        new_N,
        old_N,
        lambda new_R, old_R: np.vectorize(lambda a, b: _held(rule, a, b))(told(new_R), told(old_R)),
    )


def _interval(metric: Metric) -> tuple[float, float] | None:
    if metric.low is not None and metric.high is not None:
        return metric.low, metric.high
    return (metric.value, metric.value) if metric.samples == 1 else None


def _basis(metric: Metric) -> str:
    if metric.samples == 1:
        return "one measurement" if metric.name == "peak_rss_bytes" else "counted"
    return f"{metric.samples} samples" + (
        "" if metric.low is not None else ", which give no interval"
    )


def _clear(rule: Rule, low: float, high: float) -> bool:
    """Whether all of an interval lies on one side of the limit, the limit itself being allowed."""
    return (
        low >= rule.limit or high < rule.limit
        if rule.bound == "min"
        else high <= rule.limit or low > rule.limit
    )


def _key(rule: Rule, step: Figures, reference: Figures | None) -> str:
    return digest_json(
        {
            "rule": rule.label,
            "models": [one.id for one in (step, reference) if one is not None],
            "measured": [
                one.artifact.manifest.measured for one in (step, reference) if one and one.artifact
            ],
            "machine": environment(0, "").cpu,
        }
    )


def _result(
    rule: Rule, step: Figures, new: Metric, old: Metric | None, found: _Found
) -> GateResult:
    within = found.value >= rule.limit if rule.bound == "min" else found.value <= rule.limit
    low, high = found.interval or (None, None)
    decided = rule.judge == "value" or (
        low is not None and high is not None and _clear(rule, low, high)
    )
    figure = _figure(found.value)
    if low is not None and high is not None and low != high:
        figure += f" ({_figure(low)} to {_figure(high)})"
    sides = ("at least", "below") if rule.bound == "min" else ("at most", "above")
    how = f"is {sides[not within]}" if decided else "cannot be told from"
    return GateResult(
        gate=rule.label,
        step=step.name,
        metric=rule.metric,
        unit=new.unit,
        value=new.value,
        reference=old.value if old is not None and rule.is_relative else None,
        found=found.value,
        low=low,
        high=high,
        limit=rule.limit,
        basis=found.basis,
        decided=decided,
        passed=within if decided else rule.undecided == "pass",
        reason=f"{figure} {how} {_figure(rule.limit)}",
    )


def _missing(rule: Rule, step: Figures, reason: str, new: Metric | None) -> GateResult:
    value = new.value if new is not None else None
    return GateResult(
        gate=rule.label,
        step=step.name,
        metric=rule.metric,
        value=value,
        limit=rule.limit,
        passed=False,
        reason=reason,
    )


def _figure(value: float) -> str:
    """A count of bytes in full, a fraction to six digits."""
    return f"{value:,.0f}" if 1e5 <= abs(value) < math.inf else f"{value:.6g}"
