"""Tests of pipelines whose steps are compared with a reference, from the file to the reports."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from compressor.artifacts.artifact import verify
from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.runner import Runner, RunResult, load_given, select
from compressor.engine.run.single_pass import measure_artifact, single_pass
from compressor.errors import ConfigError, UsageError
from compressor.reports.pages.write import write_artifact_reports

PIPELINE = """version: 1
name: tiny
model: {family: tiny, config: {}}
data:
  test: {source: tiny}
evaluate:
  accuracy: {data: test, metrics: [top1, agreement, kl], bootstrap: 0}
passes:
  - type: train
    name: trained
    train: test
    validation: null
    training: {steps: 3, batch_size: 8, learning_rate: 0.1, evaluate_every: 0}
  - {type: export-onnx, name: onnx}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE)
    return path


def run(file: Path, *sets: str, until: str | None = None) -> RunResult:
    pipeline = load_pipeline(file, sets)
    plan = make_plan(
        pipeline, Store(file.parent / "store"), SourceContext(pipeline.base, cache=file.parent)
    )
    selected = select(plan, start=None, until=until, only=None)
    reporter = partial(write_artifact_reports, command="run")
    return Runner(plan, lambda _: None, reporter, selected=selected).run()


def metrics_by_step(result: RunResult) -> dict[str, dict[str, float]]:
    return {
        step.step.name: {metric.name: metric.value for metric in step.artifact.manifest.metrics}
        for step in result.steps
    }


def test_steps_are_compared_with_the_source_or_with_a_named_step(file: Path) -> None:
    metrics = metrics_by_step(run(file))
    assert (metrics["source"]["agreement"], metrics["source"]["kl"]) == (1.0, 0.0)
    assert metrics["trained"]["kl"] > 1e-3
    assert metrics["onnx"]["kl"] == pytest.approx(metrics["trained"]["kl"], rel=1e-3)
    assert {step.how for step in run(file).steps} == {"cached"}
    second = run(file, "evaluate.accuracy.reference=trained")
    assert {step.how for step in second.steps} == {"measured"}
    metrics = metrics_by_step(second)
    assert "kl" not in metrics["source"]
    assert "top1" in metrics["source"]
    assert (metrics["trained"]["agreement"], metrics["trained"]["kl"]) == (1.0, 0.0)
    assert metrics["onnx"]["kl"] == pytest.approx(0.0, abs=1e-6)
    for step in second.steps:
        verify(step.artifact)
        report = json.loads((step.artifact.path / "reports" / "accuracy.json").read_text())
        assert report["reference"] == (
            None if step.step.name == "source" else second.steps[1].artifact.id
        )


def test_a_changed_reference_of_the_same_name_is_compared_again(file: Path) -> None:
    sets = ("evaluate.accuracy.reference=trained", "passes[1].from=source")
    before = run(file, *sets)
    after = run(file, *sets, "passes[0].training.steps=9")
    assert {step.step.name: step.how for step in after.steps} == {
        "source": "cached",
        "trained": "built",
        "onnx": "measured",
    }
    assert metrics_by_step(after)["onnx"]["kl"] != metrics_by_step(before)["onnx"]["kl"]


def test_steps_before_the_reference_are_not_compared(file: Path) -> None:
    sets = ("evaluate.accuracy.metrics=[kl]", "evaluate.accuracy.reference=trained")
    metrics = metrics_by_step(run(file, *sets, until="trained"))
    assert metrics == {"source": {}, "trained": metrics["trained"]}
    assert metrics["trained"]["kl"] == 0.0


def test_an_artifact_directory_as_reference(file: Path) -> None:
    source = run(file, until="source").steps[0].artifact
    result = run(file, "seed=1", f"evaluate.accuracy.reference={source.path}", until="source")
    assert [step.step.name for step in result.steps] == [str(source.path), "source"]
    assert metrics_by_step(result)["source"]["kl"] > 0
    report = json.loads((result.steps[1].artifact.path / "reports" / "accuracy.json").read_text())
    assert report["reference"] == source.id


def test_eval_needs_an_artifact_as_reference(file: Path) -> None:
    source, trained = (step.artifact for step in run(file, until="trained").steps)

    def measure(*sets: str) -> dict[str, float]:
        artifact = load_given(trained.path)
        measurement = measure_artifact(
            artifact, file, sets, lambda _: None, allow_code=False, accuracy=True
        )
        return {metric.name: metric.value for metric in measurement.metrics}

    with pytest.raises(
        UsageError, match="agreement and kl compare with 'source', which is not an artifact"
    ) as caught:
        measure()
    assert "--set evaluate.accuracy.reference=" in str(caught.value.remedy)
    # The path is relative to the pipeline file.
    relative = source.path.relative_to(file.parent)
    assert (
        measure(f"evaluate.accuracy.reference={relative}")["kl"]
        == trained.manifest.metric("kl").value
    )


def test_a_single_pass_is_compared_with_its_input(file: Path) -> None:
    trained = run(file, until="trained").steps[1].artifact
    file.write_text(PIPELINE.replace("bootstrap: 0", "bootstrap: 0, reference: trained"))

    def plan(*fields: str) -> object:
        pipeline = single_pass("export-onnx", trained.path, file, fields)
        return make_plan(
            pipeline, Store(file.parent / "store"), SourceContext(pipeline.base, cache=file.parent)
        )

    with pytest.raises(
        ConfigError, match="'trained' is neither a step nor an artifact directory"
    ) as caught:
        plan()
    assert "known: export-onnx, source" in str(caught.value)
    planned = plan("evaluate.accuracy.reference=source", "opset=20")
    assert planned.step("export-onnx").reference == "source"
    assert planned.step("export-onnx").recipe.config["opset"] == 20
    result = Runner(
        planned, lambda _: None, lambda *_: None, selected=frozenset({"export-onnx"})
    ).run()
    assert metrics_by_step(result)["export-onnx"]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_an_artifact_to_start_from_is_measured_as_this_pipeline_asks(file: Path) -> None:
    trained = run(file, until="trained").steps[1].artifact
    manifest = (trained.path / "manifest.json").read_bytes()
    later = file.parent / "later" / "pipeline.yaml"
    later.parent.mkdir()
    later.write_text(
        "version: 1\nname: later\n"
        f"model: {{path: {trained.path}}}\n"
        "data: {test: {source: tiny}}\n"
        "evaluate: {accuracy: {data: test, metrics: [top1], num_samples: 8, bootstrap: 0}}\n"
        "passes: [{type: export-onnx, name: onnx}]\n"
    )
    first = run(later)
    assert [step.how for step in first.steps] == ["measured", "built"]
    source, exported = (step.artifact.manifest.metrics for step in first.steps)
    assert source[0].name == "top1"
    assert source[0].samples == 8
    assert source[0].value == exported[0].value
    assert first.steps[0].artifact.path.parent == later.parent / "store"
    verify(first.steps[0].artifact)
    assert (trained.path / "manifest.json").read_bytes() == manifest
    assert [step.how for step in run(later).steps] == ["cached", "cached"]


def test_an_artifact_of_the_same_store_is_measured_where_it_is(file: Path) -> None:
    trained = run(file, until="trained").steps[1].artifact
    sets = ("evaluate.accuracy.metrics=[top1]", "passes=[]")
    text = file.read_text().replace("{family: tiny, config: {}}", f"{{path: {trained.path}}}")
    file.write_text(text)
    result = run(file, *sets)
    assert [step.how for step in result.steps] == ["measured"]
    assert result.steps[0].artifact.path == trained.path
    assert "kl" not in metrics_by_step(result)["source"]
    assert "top1" in metrics_by_step(result)["source"]
