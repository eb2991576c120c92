from pathlib import Path

import pytest

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.manifest import Metric
from compressor.reports.rows.changes import change_text
from compressor.reports.rows.ladder import Ladder, LadderInput, build_ladder, change
from tests.support.reports import count_metric, fraction_metric, latency_metric, manifest, phone_run


def step(
    name: str, metrics: tuple[Metric, ...], parent: str | None = None, runtime: str = "torch"
) -> LadderInput:
    return LadderInput(
        name,
        Artifact(Path("store") / name, manifest(name, metrics=metrics)),
        cached=False,
        parent=parent,
        runtime=runtime,
    )


@pytest.fixture
def ladder(tmp_path: Path) -> Ladder:
    return build_ladder(phone_run(tmp_path))


def test_columns_are_accuracies_then_measured_costs(ladder: Ladder) -> None:
    assert ladder.accuracy == ("top1",)
    assert ladder.columns == (
        "top1",
        "latency_p50_ms",
        "throughput",
        "size_bytes",
        "parameters",
        "macs",
        "peak_rss_bytes",
    )


def test_a_cost_that_was_not_measured_has_no_column() -> None:
    assert build_ladder([step("source", ())]).columns == ("size_bytes",)


def test_the_size_is_known_without_measuring(ladder: Ladder) -> None:
    source = ladder.row("source")
    assert set(source.metrics) == {"size_bytes"}
    assert source.metrics["size_bytes"].value == source.model_bytes == 18_400_000


def test_latency_is_not_compared_with_that_of_another_runtime(ladder: Ladder) -> None:
    onnx = ladder.row("onnx")
    assert onnx.changes["top1"].against == "student"
    assert {"latency_p50_ms", "throughput", "peak_rss_bytes"}.isdisjoint(onnx.changes)
    assert ladder.row("student").changes["latency_p50_ms"].against == "teacher"


def test_latency_is_compared_with_a_relative_of_the_same_runtime() -> None:
    time = latency_metric("latency_p50_ms", 4.0)
    ladder = build_ladder(
        [
            step("student", (time,)),
            step("onnx", (time,), "student", "ONNX Runtime"),
            step("int8", (), "student"),
            step("int8-onnx", (latency_metric("latency_p50_ms", 2.0),), "int8", "ONNX Runtime"),
        ]
    )
    assert "latency_p50_ms" not in ladder.row("onnx").changes
    faster = ladder.row("int8-onnx").changes["latency_p50_ms"]
    assert (faster.against, faster.ratio, faster.verdict) == ("onnx", 0.5, "better")


def test_a_branch_is_compared_with_its_own_parent(ladder: Ladder) -> None:
    assert ladder.row("pruned").changes["top1"].against == "teacher"
    assert ladder.row("pruned").changes["top1"].absolute == pytest.approx(0.771 - 0.831)


def test_a_step_that_was_not_measured_is_passed_over() -> None:
    rows = [
        step("teacher", (fraction_metric("top1", 0.8),)),
        step("cut", (), "teacher"),
        step("pruned", (fraction_metric("top1", 0.7),), "cut"),
    ]
    assert build_ladder(rows).row("pruned").changes["top1"].against == "teacher"


def test_there_is_no_change_if_nothing_comparable_was_measured(ladder: Ladder) -> None:
    assert set(ladder.row("teacher").changes) == {"size_bytes"}


def test_deliverables_are_compared_with_the_first_row_whose_accuracy_was_measured(
    ladder: Ladder,
) -> None:
    assert ladder.baseline.step == "teacher"
    assert build_ladder([step("source", ())]).baseline.step == "source"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (fraction_metric("top1", 0.80, 0.02), fraction_metric("top1", 0.83, 0.02), "noise"),
        (fraction_metric("top1", 0.80, 0.01), fraction_metric("top1", 0.83, 0.01), "better"),
        (fraction_metric("top1", 0.83, 0.01), fraction_metric("top1", 0.80, 0.01), "worse"),
        (latency_metric("latency_p50_ms", 4.0), latency_metric("latency_p50_ms", 2.0), "better"),
        (latency_metric("latency_p50_ms", 2.0), latency_metric("latency_p50_ms", 4.0), "worse"),
        (count_metric("parameters", 100), count_metric("parameters", 99), "better"),
        (count_metric("parameters", 100), count_metric("parameters", 100), "same"),
    ],
)
def test_a_change_is_better_or_worse_unless_it_is_within_noise(
    old: Metric, new: Metric, verdict: str
) -> None:
    assert change(new, old, "before").verdict == verdict


def test_there_is_no_ratio_to_zero_but_a_difference() -> None:
    from_zero = change(count_metric("macs", 5), count_metric("macs", 0), "before")
    assert from_zero.ratio is None
    assert change_text(from_zero, "count") == "+5"


def test_the_primary_accuracy_is_the_first_that_should_be_high() -> None:
    loss = Metric(name="cross_entropy", value=0.4, unit="nats", better="lower", samples=10)
    ladder = build_ladder([step("source", (loss, fraction_metric("top1", 0.8)))])
    assert ladder.accuracy == ("cross_entropy", "top1")
    assert ladder.primary == "top1"
    assert build_ladder([step("source", (loss,))]).primary is None


def test_slices_are_those_of_the_primary_accuracy(ladder: Ladder) -> None:
    assert ladder.slices()[:2] == ("input=text", "input=speech")
    assert not any("[" in name for name in ladder.columns)


def test_a_ladder_names_formats_as_manifests_do(ladder: Ladder) -> None:
    assert [row["kind"] for row in ladder.model_dump(mode="json")["rows"]][-2:] == ["onnx", "torch"]


def test_a_ladder_survives_json(ladder: Ladder) -> None:
    assert Ladder.model_validate_json(ladder.model_dump_json()) == ladder
