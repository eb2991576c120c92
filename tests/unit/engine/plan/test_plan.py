from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import draft_pipeline, load_pipeline
from compressor.engine.plan.plan import Plan, evaluate_of
from compressor.engine.plan.planner import make_plan
from compressor.errors import CompressError, ConfigError


def plan(file: Path, *sets: str, seed: int | None = None) -> Plan:
    pipeline = load_pipeline(file, sets)
    return make_plan(
        pipeline, Store(file.parent / "store"), SourceContext(pipeline.base), seed=seed
    )


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def message(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(file)
    return str(caught.value)


def test_planning_writes_nothing(toy_pipeline: Path) -> None:
    before = sorted(toy_pipeline.parent.rglob("*"))
    planned = plan(toy_pipeline)
    assert [step.state for step in planned.steps] == ["build"] * 3
    assert sorted(toy_pipeline.parent.rglob("*")) == before


def test_errors_of_a_chain_are_named(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "name: first}", "name: first, from: scond}")
    assert "did you mean 'second'?" in message(toy_pipeline)
    edit(toy_pipeline, "from: scond", "from: second")
    assert "forms a cycle: first → second → first" in message(toy_pipeline)
    edit(toy_pipeline, "name: second,", "name: second, from: source,")
    assert "names a later step" in message(toy_pipeline)


def test_a_pass_that_cannot_read_its_parents_format_is_an_error(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "passes:", "data:\n  test: {source: phone-bed, split: test}\npasses:")
    edit(toy_pipeline, "{type: toy, name: second, rounds: 3}", "{type: export-onnx}")
    assert (
        "export-onnx cannot follow first (toy): it reads packed or quantized or torch, not onnx"
        in message(toy_pipeline)
    )
    edit(toy_pipeline, "  - {type: toy, name: first}\n", "")
    assert "cannot follow the source model" in message(toy_pipeline)


def test_gates_without_a_measurement_are_errors(toy_pipeline: Path) -> None:
    with toy_pipeline.open("a") as file:
        file.write(
            "gates:\n  - {metric: top1, min: 0.5}\n"
            "  - {metric: size_bytes, max_ratio: 1.0, against: frist}\n"
        )
    text = message(toy_pipeline)
    assert "nothing measures 'top1'" in text
    assert "did you mean 'first'?" in text


def test_a_missing_model_is_reported_with_its_line(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "path: model", "path: modell")
    text = message(toy_pipeline)
    assert "pipeline.yaml:3" in text
    assert "modell does not exist" in text


def test_a_cycle_of_three_steps_is_named(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "name: first}", "name: first, from: third}")
    with toy_pipeline.open("a") as file:
        file.write("  - {type: toy, name: third}\n")
    assert "forms a cycle" in message(toy_pipeline)


def test_a_missing_source_model_is_an_error(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "path: model", "path: nowhere")
    with pytest.raises(CompressError):
        plan(toy_pipeline)


def add_comparison(file: Path, more: str = "") -> None:
    """Add metrics that compare every step of the toy pipeline with a reference."""
    np.savez(file.parent / "numbers.npz", x=np.zeros(4, np.float32))
    np.savez(file.parent / "labelled.npz", x=np.zeros(4, np.float32), label=np.arange(4))
    with file.open("a") as out:
        out.write(
            "data:\n"
            "  numbers: {source: arrays, path: numbers.npz}\n"
            "evaluate:\n"
            "  accuracy:\n"
            "    data: numbers\n"
            f"    metrics: [cosine, max_abs]\n{more}"
        )


def references_of(planned: Plan) -> dict[str, str | None]:
    return {step.name: step.reference for step in planned.steps}


def test_the_reference_is_the_source_unless_a_step_is_named(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline)
    assert references_of(plan(toy_pipeline)) == dict.fromkeys(
        ("source", "first", "second"), "source"
    )
    planned = plan(toy_pipeline, "evaluate.accuracy.reference=first")
    assert references_of(planned) == {"source": None, "first": "first", "second": "first"}
    assert planned.step("source").measured == "", "steps before the reference are not measured"
    planned = plan(toy_pipeline, "evaluate.accuracy.reference=first", "passes[1].measure=false")
    assert references_of(planned)["second"] is None


def test_a_reference_that_no_metric_uses_has_no_effect(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline)
    sets = (
        "evaluate.accuracy.metrics=[mse]",
        "data.numbers={source: arrays, path: labelled.npz}",
    )
    planned, named = (
        plan(toy_pipeline, *sets),
        plan(toy_pipeline, *sets, "evaluate.accuracy.reference=first"),
    )
    assert set(references_of(named).values()) == {None}
    assert [step.measured for step in planned.steps] == [step.measured for step in named.steps]


def test_reports_depend_on_the_reference_artifact_not_on_its_name(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline, "    reference: first\n")
    edit(toy_pipeline, "rounds: 3}", "rounds: 3, from: source}")
    before, after = plan(toy_pipeline), plan(toy_pipeline, "passes[0].rounds=9")
    assert before.step("second").artifact_id == after.step("second").artifact_id
    assert before.step("second").measured != after.step("second").measured
    renamed = plan(toy_pipeline, "passes[0].name=other", "evaluate.accuracy.reference=other")
    assert before.step("second").measured == renamed.step("second").measured


def test_latency_is_measured_where_there_is_no_reference(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline, "    reference: first\n  latency: {repeats: 5}\n")
    planned = plan(toy_pipeline)
    assert planned.step("source").measured
    evaluate = evaluate_of(planned.pipeline, compared=False)
    assert evaluate.accuracy is None
    assert evaluate.latency is not None
    assert evaluate.latency.data == "numbers"


def test_an_unknown_reference_is_an_error(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline, "    reference: frist\n")
    text = message(toy_pipeline)
    assert (
        "pipeline.yaml:13: evaluate.accuracy.reference: "
        "'frist' is neither a step nor an artifact directory" in text
    )
    assert "did you mean 'first'?" in text


def test_a_reference_that_no_runtime_executes_is_an_error(
    toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_comparison(toy_pipeline, "    reference: second\n")
    monkeypatch.setattr("toy.Toy.produces", "delta")
    edit(toy_pipeline, "rounds: 3}", "rounds: 3, from: source}")
    assert "'second' cannot be the reference: no runtime executes delta" in message(toy_pipeline)


@pytest.mark.parametrize(
    ("section", "typo"), [("passes", "pases"), ("evaluate", "evalute"), ("data", "dta")]
)
def test_a_misspelt_section_is_the_only_problem(tmp_path: Path, section: str, typo: str) -> None:
    file = tmp_path / "pipeline.yaml"
    text = (
        "version: 1\nname: toy\nmodel: {path: model}\n"
        "data: {test: {source: phone-bed, split: test}}\n"
        "evaluate: {accuracy: {data: test}}\n"
        "passes: [{type: toy, name: first}]\n"
        "gates: [{metric: top1, max_drop: 0.01, step: first, against: source}]\n"
    )
    file.write_text(text.replace(f"{section}:", f"{typo}:", 1))
    with pytest.raises(ConfigError) as caught:
        draft_pipeline(file)
    assert [problem.what for problem in caught.value.problems] == [f"unknown key {typo!r}"]


def test_a_gate_on_a_step_before_the_reference_is_an_error(toy_pipeline: Path) -> None:
    add_comparison(toy_pipeline, "    reference: second\n")
    with toy_pipeline.open("a") as file:
        file.write(
            "gates:\n  - {metric: max_abs, max: 0.1, step: first}\n"
            "  - {metric: max_abs, max: 0.1}\n"
        )
    text = message(toy_pipeline)
    assert (
        "gates[0].step: 'first' comes before 'second', the reference: max_abs is not measured of it"
        in text
    )
    assert "gates[1]" not in text


def test_a_reference_to_a_step_of_another_pass_is_an_error(toy_pipeline: Path) -> None:
    (toy_pipeline.parent / "words.txt").write_text("some words")
    with toy_pipeline.open("a") as file:
        file.write(
            "  - {type: qat, name: rounded, from: source, "
            "calibration: {data: words, table: first}}\n"
            "data:\n"
            "  numbers: {source: arrays, path: numbers.npz}\n"
        )
    assert "'first' is toy, and a qat step is expected" in message(toy_pipeline)
