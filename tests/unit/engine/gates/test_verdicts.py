"""Verdicts on recorded figures, in pairs, and on models that are timed in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from compressor.artifacts.manifest import Environment, Manifest, Metric, PassRecord
from compressor.artifacts.store import Artifact
from compressor.engine.gates.measured_model import MeasuredModel
from compressor.engine.gates.rules import Rule
from compressor.engine.gates.verdicts import GateChecker
from compressor.errors import GpuError
from compressor.evaluation.records import AccuracyReport

HERE = Environment(platform="", cpu="", cores=1, memory_bytes=1, python="", threads=1, device="cpu")


def share(value: float, half: float | None = 0.02, name: str = "top1") -> Metric:
    ends = {} if half is None else {"low": value - half, "high": value + half}
    return Metric(name=name, value=value, unit="fraction", better="higher", samples=1000, **ends)


def counted(value: float) -> Metric:
    return Metric(name="size_bytes", value=value, unit="bytes", better="lower", samples=1)


def figures(
    tmp_path: Path, name: str, *metrics: Metric, right: Any = None, labels: Any = None
) -> MeasuredModel:
    manifest = Manifest(
        id=name * 8,
        step=name,
        kind="onnx",
        parents={},
        pass_=PassRecord(name="toy", version=1, config={}),
        seed=0,
        tools={},
        data={},
        files={},
        reports={},
        measured="",
        metrics=metrics,
        summary={},
        environment=HERE,
        created="",
        seconds=0,
        peak_rss_bytes=0,
    )
    artifact = Artifact(tmp_path / name, manifest.model_copy(update={"measured": name}))
    if right is not None:
        report = AccuracyReport(
            data="test",
            samples=len(right),
            metrics=(),
            slices={},
            predictions=(),
            labels=tuple(labels),
            values={"top1": tuple(map(float, right))},
        )
        artifact.reports.mkdir(parents=True)
        (artifact.reports / "accuracy.json").write_text(report.model_dump_json())
    return MeasuredModel.of(artifact)


def judged(rule: Rule, step: MeasuredModel, reference: MeasuredModel | None = None) -> Any:
    return GateChecker(None, {})(rule, step, reference)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.80, "passed"),
        (0.75, "passed"),
        (0.74, "undecided"),
        (0.70, "undecided"),
        (0.70 - 0.03, "failed"),
    ],
)
def test_an_absolute_limit_and_the_recorded_interval(
    tmp_path: Path, value: float, verdict: str
) -> None:
    found = judged(Rule("top1", "min", 0.72, None), figures(tmp_path, "a", share(value, 0.03)))
    assert found.verdict == verdict
    assert found.passed is (verdict == "passed")
    assert (found.low, found.high) == pytest.approx((value - 0.03, value + 0.03))


def test_what_undecided_comes_to_and_the_value_alone(tmp_path: Path) -> None:
    step = figures(tmp_path, "a", share(0.72))
    undecided = judged(Rule("top1", "min", 0.73, None, undecided="pass"), step)
    assert (undecided.verdict, undecided.passed) == ("undecided", True)
    assert "cannot be told from 0.73" in undecided.reason
    by_value = judged(Rule("top1", "min", 0.73, None, judge="value"), step)
    assert (by_value.verdict, by_value.passed) == ("failed", False)


def test_what_is_counted_has_no_noise(tmp_path: Path) -> None:
    old, new = figures(tmp_path, "old", counted(1000)), figures(tmp_path, "new", counted(651))
    found = judged(Rule("size_bytes", "max_ratio", 0.65, "old"), new, old)
    assert (found.verdict, found.basis) == ("failed", "exact count")
    assert judged(Rule("size_bytes", "max", 651, None), new).verdict == "passed"


def test_the_same_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    right = np.arange(2000) % 5 > 0
    worse = right & (np.arange(2000) % 200 != 1)
    labels = range(2000)
    old = figures(tmp_path, "old", share(0.8), right=right, labels=labels)
    new = figures(tmp_path, "new", share(0.79), right=worse, labels=labels)
    paired = judged(Rule("top1", "max_drop", 0.02, "old"), new, old)
    assert (paired.verdict, paired.basis) == ("passed", "2000 paired samples")
    other = figures(tmp_path, "other", share(0.8), right=right, labels=range(1, 2001))
    apart = judged(Rule("top1", "max_drop", 0.02, "other"), new, other)
    assert (apart.verdict, apart.basis) == ("undecided", "both intervals")


def test_a_drop_that_is_not_there_is_rarely_found(tmp_path: Path) -> None:
    """A model that answers otherwise but as well as the old: max_drop 0 fails it in 2.5 of 100, not in 50."""
    generator = np.random.default_rng(0)
    found = []
    for trial in range(150):
        old = generator.random(1000) < 0.8
        new = np.where(generator.random(1000) < 0.1, generator.random(1000) < 0.8, old)
        sides = [
            figures(
                tmp_path / str(trial), name, share(float(x.mean())), right=x, labels=range(1000)
            )
            for name, x in (("new", new), ("old", old))
        ]
        found.append(judged(Rule("top1", "max_drop", 0.0, "old"), *sides).verdict)
    assert found.count("failed") <= 9
    assert found.count("passed") <= 9


def test_figures_that_are_not_there(tmp_path: Path) -> None:
    step = figures(tmp_path, "a", share(0.7))
    assert judged(Rule("kl", "max", 1, None), step).reason == "a has no kl"
    assert "b has no top1" in judged(Rule("top1", "max_drop", 0, "b"), step, None).reason
    without = judged(Rule("top1", "min", 0.5, None), figures(tmp_path, "b", share(0.7, None)))
    assert (without.verdict, without.basis) == ("undecided", "1000 samples, without an interval")


class FakeTimer:
    """A model that takes about ``middle`` milliseconds."""

    opened = 0

    def __init__(self, middle: float, *, ready: bool = True) -> None:
        self.middle, self.is_ready = middle, ready
        self.draw = np.random.default_rng(int(middle * 10))
        FakeTimer.opened += 1

    def ready(self) -> None:
        if not self.is_ready:
            raise GpuError("none here")

    def measure_round(self, metric: str) -> float:
        return self.middle * float(np.exp(0.1 * self.draw.standard_normal()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


def latency(value: float) -> Metric:
    return Metric(
        name="latency_p50_ms",
        value=value,
        unit="ms",
        better="lower",
        samples=99,
        low=value * 0.5,
        high=value * 2,
    )


def test_latency_is_timed_in_turns_until_it_is_clear_and_not_again(tmp_path: Path) -> None:
    new, old = figures(tmp_path, "new", latency(9.0)), figures(tmp_path, "old", latency(10.0))
    middles = {"new": 4.0, "old": 10.0}
    rule = Rule("latency_p50_ms", "max_ratio", 0.7, "old")
    judge = GateChecker(lambda artifact, _: FakeTimer(middles[artifact.name]), {})  # type: ignore[arg-type,return-value]
    found = judge(rule, new, old)
    assert (found.verdict, found.basis) == ("passed", "8 interleaved rounds")
    assert found.found == pytest.approx(0.4, rel=0.1)
    opened = FakeTimer.opened
    again = GateChecker(lambda *_: FakeTimer(99), {found.key: found})(rule, new, old)  # type: ignore[arg-type,return-value]
    assert (again, FakeTimer.opened) == (found, opened)
    assert judged(rule, new, old).verdict == "undecided", (
        "recorded at different times, both are too noisy"
    )


def test_an_engine_that_cannot_run_here_is_judged_by_what_was_recorded(tmp_path: Path) -> None:
    new = figures(tmp_path, "new", latency(9.0))
    judge = GateChecker(lambda *_: FakeTimer(1.0, ready=False), {})  # type: ignore[arg-type,return-value]
    found = judge(Rule("latency_p50_ms", "max", 30, None), new, None)
    assert (found.verdict, found.basis) == ("passed", "99 samples")


def test_a_verdict_is_json(tmp_path: Path) -> None:
    told = json.loads(
        judged(Rule("top1", "min", 0.5, None), figures(tmp_path, "a", share(0.7))).model_dump_json()
    )
    assert told["verdict"] == "passed"
