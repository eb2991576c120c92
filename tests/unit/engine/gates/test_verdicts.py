"""Tests of verdicts from recorded metrics, paired samples, and interleaved timing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from compressor.artifacts.artifact import Artifact, entries_of
from compressor.artifacts.manifest import Environment, Manifest, Metric, PassRecord
from compressor.engine.gates.measured_model import MeasuredModel
from compressor.engine.gates.rules import Rule
from compressor.engine.gates.verdicts import GateChecker, _limited_quantity
from compressor.errors import DamagedArtifactError, GpuError
from compressor.evaluation.records import AccuracyReport

ENVIRONMENT = Environment(
    platform="", cpu="", cores=1, memory_bytes=1, python="", threads=1, device="cpu"
)


def fraction_metric(value: float, half: float | None = 0.02, name: str = "top1") -> Metric:
    ends = {} if half is None else {"low": value - half, "high": value + half}
    return Metric(name=name, value=value, unit="fraction", better="higher", samples=1000, **ends)


def size_metric(value: float) -> Metric:
    return Metric(name="size_bytes", value=value, unit="bytes", better="lower", samples=1)


def measured_model(
    tmp_path: Path, name: str, *metrics: Metric, correct: Any = None, labels: Any = None
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
        environment=ENVIRONMENT,
        created="",
        seconds=0,
        peak_rss_bytes=0,
    )
    path, reports = tmp_path / name, {}
    if correct is not None:
        report = AccuracyReport(
            data="test",
            samples=len(correct),
            metrics=(),
            slices={},
            predictions=(),
            labels=tuple(labels),
            values={"top1": tuple(map(float, correct))},
        )
        (path / "reports").mkdir(parents=True)
        (path / "reports/accuracy.json").write_text(report.model_dump_json())
        reports = entries_of(path, "reports")
    measured = manifest.model_copy(update={"measured": name, "reports": reports})
    return MeasuredModel.of(Artifact(path, measured))


@pytest.mark.parametrize("damage", ["changed", "deleted"])
def test_samples_that_differ_from_the_manifest_decide_nothing(tmp_path: Path, damage: str) -> None:
    labels = [0, 1] * 24
    old = measured_model(tmp_path, "a", fraction_metric(0.9), correct=[1] * 48, labels=labels)
    correct = [1] * 8 + [0] * 40
    new = measured_model(tmp_path, "b", fraction_metric(0.9), correct=correct, labels=labels)
    rule = Rule("top1", "max_drop", 0.01, "a")
    file = tmp_path / "b/reports/accuracy.json"
    if damage == "deleted":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("0.0", "1.0"))
    with pytest.raises(DamagedArtifactError, match=r"accuracy\.json"):
        check(rule, new, old)


def check(rule: Rule, step: MeasuredModel, reference: MeasuredModel | None = None) -> Any:
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
def test_an_absolute_limit_is_compared_with_the_recorded_interval(
    tmp_path: Path, value: float, verdict: str
) -> None:
    result = check(
        Rule("top1", "min", 0.72, None), measured_model(tmp_path, "a", fraction_metric(value, 0.03))
    )
    assert result.verdict == verdict
    assert result.passed is (verdict == "passed")
    assert (result.low, result.high) == pytest.approx((value - 0.03, value + 0.03))


def test_a_rule_states_the_result_of_undecided_or_compares_the_value_alone(tmp_path: Path) -> None:
    step = measured_model(tmp_path, "a", fraction_metric(0.72))
    undecided = check(Rule("top1", "min", 0.73, None, undecided="pass"), step)
    assert (undecided.verdict, undecided.passed) == ("undecided", True)
    assert "cannot be told from 0.73" in undecided.reason
    by_value = check(Rule("top1", "min", 0.73, None, judge="value"), step)
    assert (by_value.verdict, by_value.passed) == ("failed", False)


def test_exact_counts_have_no_interval(tmp_path: Path) -> None:
    old, new = (
        measured_model(tmp_path, "old", size_metric(1000)),
        measured_model(tmp_path, "new", size_metric(651)),
    )
    result = check(Rule("size_bytes", "max_ratio", 0.65, "old"), new, old)
    assert (result.verdict, result.basis) == ("failed", "exact count")
    assert check(Rule("size_bytes", "max", 651, None), new).verdict == "passed"


def test_the_same_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    correct = np.arange(2000) % 5 > 0
    worse = correct & (np.arange(2000) % 200 != 1)
    labels = range(2000)
    old = measured_model(tmp_path, "old", fraction_metric(0.8), correct=correct, labels=labels)
    new = measured_model(tmp_path, "new", fraction_metric(0.79), correct=worse, labels=labels)
    paired = check(Rule("top1", "max_drop", 0.02, "old"), new, old)
    assert (paired.verdict, paired.basis) == ("passed", "2000 paired samples")
    unpaired = measured_model(
        tmp_path, "other", fraction_metric(0.8), correct=correct, labels=range(1, 2001)
    )
    separate = check(Rule("top1", "max_drop", 0.02, "other"), new, unpaired)
    assert (separate.verdict, separate.basis) == ("undecided", "both intervals")


def test_equal_accuracy_rarely_fails_a_limit_of_no_drop(tmp_path: Path) -> None:
    """An equally good model fails max_drop 0 in 2.5 of 100 cases, not in 50."""
    generator = np.random.default_rng(0)
    verdicts = []
    for trial in range(150):
        old = generator.random(1000) < 0.8
        new = np.where(generator.random(1000) < 0.1, generator.random(1000) < 0.8, old)
        sides = [
            measured_model(
                tmp_path / str(trial),
                name,
                fraction_metric(float(x.mean())),
                correct=x,
                labels=range(1000),
            )
            for name, x in (("new", new), ("old", old))
        ]
        verdicts.append(check(Rule("top1", "max_drop", 0.0, "old"), *sides).verdict)
    assert verdicts.count("failed") <= 9
    assert verdicts.count("passed") <= 9


def test_missing_metrics_and_intervals_are_reported(tmp_path: Path) -> None:
    step = measured_model(tmp_path, "a", fraction_metric(0.7))
    assert check(Rule("kl", "max", 1, None), step).reason == "a has no kl"
    assert "b has no top1" in check(Rule("top1", "max_drop", 0, "b"), step, None).reason
    without = check(
        Rule("top1", "min", 0.5, None), measured_model(tmp_path, "b", fraction_metric(0.7, None))
    )
    assert (without.verdict, without.basis) == ("undecided", "1000 samples, without an interval")


def timer_opener(medians: Mapping[str, float], *, ready: bool = True) -> Any:
    """Return an opener of fake timers, by the artifact's name."""
    return lambda artifact, _: FakeTimer(medians[artifact.name], ready=ready)


class FakeTimer:
    """Timer of a model with a median of ``middle`` milliseconds."""

    opened = 0

    def __init__(self, middle: float, *, ready: bool = True) -> None:
        self.middle, self.is_ready = middle, ready
        self.draw = np.random.default_rng(int(middle * 10))
        FakeTimer.opened += 1

    def ready(self) -> None:
        if not self.is_ready:
            raise GpuError("no GPU")

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


def test_latency_is_timed_in_rounds_until_the_verdict_is_clear_and_only_once(
    tmp_path: Path,
) -> None:
    new, old = (
        measured_model(tmp_path, "new", latency(9.0)),
        measured_model(tmp_path, "old", latency(10.0)),
    )
    rule = Rule("latency_p50_ms", "max_ratio", 0.7, "old")
    checker = GateChecker(timer_opener({"new": 4.0, "old": 10.0}), {})
    result = checker(rule, new, old)
    assert (result.verdict, result.basis) == ("passed", "8 interleaved rounds")
    assert result.found == pytest.approx(0.4, rel=0.1)
    opened = FakeTimer.opened
    slow = timer_opener({"new": 99, "old": 99})
    repeated = GateChecker(slow, {result.key: result})(rule, new, old)
    assert (repeated, FakeTimer.opened) == (result, opened)
    assert check(rule, new, old).verdict == "undecided", (
        "latencies recorded at different times are too noisy"
    )


def test_recorded_latency_decides_for_an_engine_that_cannot_run_here(tmp_path: Path) -> None:
    new = measured_model(tmp_path, "new", latency(9.0))
    checker = GateChecker(timer_opener({"new": 1.0}, ready=False), {})
    result = checker(Rule("latency_p50_ms", "max", 30, None), new, None)
    assert (result.verdict, result.basis) == ("passed", "99 samples")


def test_a_verdict_is_json(tmp_path: Path) -> None:
    values = json.loads(
        check(
            Rule("top1", "min", 0.5, None), measured_model(tmp_path, "a", fraction_metric(0.7))
        ).model_dump_json()
    )
    assert values["verdict"] == "passed"


def test_a_ratio_of_zero_to_zero_is_no_change() -> None:
    assert _limited_quantity(Rule("kl", "max_ratio", 1.0, "baseline"), 0.0, 0.0) == 1.0
    assert _limited_quantity(Rule("kl", "max_ratio", 1.0, "baseline"), 0.1, 0.0) == float("inf")
