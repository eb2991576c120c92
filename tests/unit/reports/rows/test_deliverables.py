from pathlib import Path

import pytest

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.manifest import Metric
from compressor.reports.rows.deliverables import (
    against_baseline,
    cells,
    columns,
    distinction,
    find_deliverables,
)
from compressor.reports.rows.ladder import Ladder, LadderInput, build_ladder
from tests.support.reports import (
    count_metric,
    fraction_metric,
    gate_result,
    latency_metric,
    manifest,
)


def measured(top1: float, p50: float, size: int) -> tuple[Metric, ...]:
    """Return accuracy, latency and size of a model."""
    return (
        fraction_metric("top1", top1),
        latency_metric("latency_p50_ms", p50),
        count_metric("size_bytes", size, "bytes"),
    )


@pytest.fixture
def ladder() -> Ladder:
    steps = [
        ("source", None, "torch", ()),
        ("teacher", "source", "torch", measured(0.85, 8.0, 2_000_000)),
        ("pruned", "teacher", "torch", measured(0.84, 5.0, 1_000_000)),
        ("onnx", "pruned", "ONNX Runtime", measured(0.84, 0.6, 1_000_000)),
        ("engine", "onnx", "TensorRT", (fraction_metric("top1", 0.84),)),
        ("int8", "pruned", "torch", ()),
        ("int8-onnx", "int8", "ONNX Runtime", measured(0.83, 0.4, 400_000)),
        ("graph", "int8", "ONNX Runtime", ()),
        ("unmeasured-engine", "graph", "TensorRT", ()),
        ("int4", "pruned", "torch", measured(0.82, 6.0, 300_000)),
    ]
    return build_ladder(
        [
            LadderInput(
                name,
                Artifact(Path(name), manifest(name, metrics=metrics)),
                cached=False,
                parent=parent,
                runtime=runtime,
            )
            for name, parent, runtime, metrics in steps
        ]
    )


def test_deliverables_are_what_other_runtimes_load_and_the_last_steps(ladder: Ladder) -> None:
    made = find_deliverables(ladder, [])
    assert [(each.row.step, each.runtime) for each in made] == [
        ("int8-onnx", "ONNX Runtime"),
        ("onnx", "ONNX Runtime"),
        ("engine", "TensorRT"),
        ("unmeasured-engine", "TensorRT"),
        ("int4", "torch"),
    ]


def test_the_best_of_a_runtime_is_named_where_there_is_a_choice(ladder: Ladder) -> None:
    titles = {each.row.step: distinction(each) for each in find_deliverables(ladder, [])}
    assert titles == {
        "int8-onnx": "smallest, fastest",
        "onnx": "most accurate",
        "engine": "",
        "unmeasured-engine": "",
        "int4": "",
    }


def test_a_model_that_failed_a_gate_is_never_the_best(ladder: Ladder) -> None:
    failed = gate_result(step="int8-onnx")
    titles = {each.row.step: distinction(each) for each in find_deliverables(ladder, [failed])}
    assert titles["int8-onnx"] == "failed a gate"
    assert titles["onnx"] == ""


def test_deliverables_are_compared_with_the_model_that_the_run_started_from(
    ladder: Ladder,
) -> None:
    best = find_deliverables(ladder, [])[0]
    assert columns(ladder) == ("top1", "size_bytes", "latency_p50_ms")
    assert cells(best, ladder) == ["83.0 % (≈ −2.0 pts)", "400 kB (×0.200)", "0.400 ms (×0.0500)"]
    assert against_baseline(ladder) == "teacher (top-1 85.0 %, 2.00 MB, 8.00 ms in torch)"


def test_a_source_alone_is_no_deliverable() -> None:
    source = Artifact(Path("source"), manifest("source", metrics=measured(0.8, 1.0, 10)))
    row = LadderInput("source", source, cached=False, parent=None, runtime="torch")
    assert find_deliverables(build_ladder([row]), []) == []
