"""Pipelines whose steps are compared with one of them, from the file to the reports."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from compressor.artifacts.store import Store, verify
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
    name: taught
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


def told(result: RunResult) -> dict[str, dict[str, float]]:
    return {
        step.step.name: {metric.name: metric.value for metric in step.artifact.manifest.metrics}
        for step in result.steps
    }


def test_every_step_is_compared_with_the_source_and_later_with_another(file: Path) -> None:
    figures = told(run(file))
    assert (figures["source"]["agreement"], figures["source"]["kl"]) == (1.0, 0.0)
    assert figures["taught"]["kl"] > 1e-3
    assert figures["onnx"]["kl"] == pytest.approx(figures["taught"]["kl"], rel=1e-3)
    assert {step.how for step in run(file).steps} == {"cached"}
    second = run(file, "evaluate.accuracy.reference=taught")
    assert {step.how for step in second.steps} == {"measured"}
    figures = told(second)
    assert "kl" not in figures["source"]
    assert "top1" in figures["source"]
    assert (figures["taught"]["agreement"], figures["taught"]["kl"]) == (1.0, 0.0)
    assert figures["onnx"]["kl"] == pytest.approx(0.0, abs=1e-6)
    for step in second.steps:
        verify(step.artifact)
        report = json.loads((step.artifact.path / "reports" / "accuracy.json").read_text())
        assert report["reference"] == (
            None if step.step.name == "source" else second.steps[1].artifact.id
        )


def test_another_reference_of_the_same_name_is_measured_against_again(file: Path) -> None:
    sets = ("evaluate.accuracy.reference=taught", "passes[1].from=source")
    before = run(file, *sets)
    after = run(file, *sets, "passes[0].training.steps=9")
    assert {step.step.name: step.how for step in after.steps} == {
        "source": "cached",
        "taught": "built",
        "onnx": "measured",
    }
    assert told(after)["onnx"]["kl"] != told(before)["onnx"]["kl"]


def test_fidelity_alone_where_there_is_no_reference_yet(file: Path) -> None:
    sets = ("evaluate.accuracy.metrics=[kl]", "evaluate.accuracy.reference=taught")
    figures = told(run(file, *sets, until="taught"))
    assert figures == {"source": {}, "taught": figures["taught"]}
    assert figures["taught"]["kl"] == 0.0


def test_an_artifact_directory_as_reference(file: Path) -> None:
    source = run(file, until="source").steps[0].artifact
    other = run(file, "seed=1", f"evaluate.accuracy.reference={source.path}", until="source")
    assert [step.step.name for step in other.steps] == [str(source.path), "source"]
    assert told(other)["source"]["kl"] > 0
    report = json.loads((other.steps[1].artifact.path / "reports" / "accuracy.json").read_text())
    assert report["reference"] == source.id


def test_one_measurement_by_hand_needs_an_artifact(file: Path) -> None:
    source, taught = (step.artifact for step in run(file, until="taught").steps)

    def measured(*sets: str) -> dict[str, float]:
        artifact = load_given(taught.path)
        found = measure_artifact(
            artifact, file, sets, lambda _: None, allow_code=False, accuracy=True
        )
        return {metric.name: metric.value for metric in found.metrics}

    with pytest.raises(
        UsageError, match="agreement and kl compare with 'source', which is no artifact dir"
    ) as caught:
        measured()
    assert "--set evaluate.accuracy.reference=" in str(caught.value.remedy)
    # The path is relative to the pipeline file.
    relative = source.path.relative_to(file.parent)
    assert (
        measured(f"evaluate.accuracy.reference={relative}")["kl"]
        == taught.manifest.metric("kl").value
    )


def test_one_pass_by_hand_is_compared_with_what_it_reads(file: Path) -> None:
    taught = run(file, until="taught").steps[1].artifact
    file.write_text(PIPELINE.replace("bootstrap: 0", "bootstrap: 0, reference: taught"))

    def plan(*fields: str) -> object:
        pipeline = single_pass("export-onnx", taught.path, file, fields)
        return make_plan(
            pipeline, Store(file.parent / "store"), SourceContext(pipeline.base, cache=file.parent)
        )

    with pytest.raises(
        ConfigError, match="'taught' is neither a step nor an artifact directory"
    ) as caught:
        plan()
    assert "known: export-onnx, source" in str(caught.value)
    made = plan("evaluate.accuracy.reference=source", "opset=20")
    assert made.step("export-onnx").reference == "source"
    assert made.step("export-onnx").recipe.config["opset"] == 20
    result = Runner(
        made, lambda _: None, lambda *_: None, selected=frozenset({"export-onnx"})
    ).run()
    assert told(result)["export-onnx"]["kl"] == pytest.approx(0.0, abs=1e-6)
