"""Metrics of a stand-in are marked everywhere; the model's own facts come from its format."""

from pathlib import Path

import pytest

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.manifest import Metric
from compressor.reports.console.artifacts import render_artifact
from compressor.reports.console.runs import render_run
from compressor.reports.pages.html import run_html
from compressor.reports.pages.markdown import run_markdown
from compressor.reports.rows import formatting
from compressor.reports.rows.artifact import measurement_notes
from compressor.reports.rows.ladder import LadderInput, build_ladder
from tests.support.reports import (
    RUNTIMES,
    count_metric,
    fraction_metric,
    latency_metric,
    manifest,
    measurement,
    run_report,
)


def steps_with_engine(executed: float, root: Path) -> list[LadderInput]:
    """Return an ONNX artifact and its engine, which was executed (1) or not (0)."""
    execution = Metric(name="executed", value=executed, unit="count", better="higher", samples=1)
    latency, size = latency_metric("latency_p50_ms", 3.0), count_metric("size_bytes", 100, "bytes")
    larger = count_metric("size_bytes", 900, "bytes")
    metrics = {
        "onnx": (fraction_metric("top1", 0.8), latency, size),
        "engine": (fraction_metric("top1", 0.79), larger, execution),
    }
    parents = {"onnx": None, "engine": "onnx"}
    return [
        LadderInput(
            name,
            Artifact(root / name, manifest(name, format=name, metrics=metrics[name])),
            cached=False,
            parent=parent,
            runtime=RUNTIMES[name],
        )
        for name, parent in parents.items()
    ]


def test_the_ladder_marks_accuracy_of_a_stand_in(tmp_path: Path) -> None:
    ladder = build_ladder(steps_with_engine(0, tmp_path))
    assert ladder.has_stand_in
    row = ladder.row("engine")
    assert [name for name in ladder.columns if row.is_stand_in(name)] == ["top1"]
    assert not ladder.row("onnx").is_stand_in("top1")
    assert "executed" not in ladder.columns
    assert not build_ladder(steps_with_engine(1, tmp_path)).has_stand_in


@pytest.mark.parametrize("executed", [0, 1])
def test_every_page_marks_a_stand_in_and_explains_the_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], executed: int
) -> None:
    report = run_report(tmp_path, steps=steps_with_engine(executed, tmp_path))
    render_run(report, tmp_path)
    printed = capsys.readouterr().out
    for page in (run_markdown(report), run_html(report, tmp_path, "digest"), printed):
        assert page.count("†") == (0 if executed else 3)
        assert (formatting.STAND_IN_NOTE in page) != bool(executed)
    line = next(line for line in printed.splitlines() if line.startswith("engine"))
    assert ("79.0 % †" in line) != bool(executed)


def test_the_notes_on_a_measurement_name_the_stand_in() -> None:
    absent = measurement().model_copy(update={"stand_in": "there is no GPU here", "latency": None})
    note = measurement_notes(absent)[-1]
    assert note.startswith("A stand-in was measured: there is no GPU here.")
    assert "Latency was not measured." in note
    assert not [line for line in measurement_notes(measurement()) if "stand-in" in line]


def test_show_prints_the_facts_of_the_model_s_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tensorrt-ab"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "bundle.json").write_text('{"command": "trtexec"}')
    render_artifact(Artifact(folder, manifest("engine", format="engine")))
    printed = " ".join(capsys.readouterr().out.split())
    assert "Format engine" in printed
    assert "command trtexec" in printed
