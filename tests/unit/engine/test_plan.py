from __future__ import annotations

from pathlib import Path

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.pipeline import load_pipeline
from compressor.engine.plan import Plan, make_plan
from compressor.errors import CompressError, ConfigError


def plan(file: Path, *sets: str, seed: int | None = None) -> Plan:
    pipeline = load_pipeline(file, sets)
    return make_plan(pipeline, Store(file.parent / "store"), SourceContext(pipeline.base), seed=seed)


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
    made = plan(toy_pipeline)
    assert [step.state for step in made.steps] == ["build"] * 3
    assert sorted(toy_pipeline.parent.rglob("*")) == before


def test_the_ways_a_chain_can_be_wrong(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "name: first}", "name: first, from: scond}")
    assert "did you mean 'second'?" in message(toy_pipeline)
    edit(toy_pipeline, "from: scond", "from: second")
    assert "in a circle: first → second → first" in message(toy_pipeline)
    edit(toy_pipeline, "name: second,", "name: second, from: source,")
    assert "names a later step" in message(toy_pipeline)


def test_kinds_that_do_not_fit(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "passes:", "data:\n  test: {source: phone-bed, split: test}\npasses:")
    edit(toy_pipeline, "{type: toy, name: second, rounds: 3}", "{type: export-onnx}")
    assert "export-onnx cannot follow first (toy): it reads torch, not onnx" in message(toy_pipeline)
    edit(toy_pipeline, "  - {type: toy, name: first}\n", "")
    assert "cannot follow the source model" in message(toy_pipeline)


def test_gates_that_nothing_can_judge(toy_pipeline: Path) -> None:
    with toy_pipeline.open("a") as file:
        file.write("gates:\n  - {metric: top1, min: 0.5}\n  - {metric: size_bytes, max_ratio: 1.0, against: frist}\n")
    text = message(toy_pipeline)
    assert "nothing measures 'top1'" in text
    assert "did you mean 'first'?" in text


def test_a_missing_model_is_told_with_its_line(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "path: model", "path: modell")
    text = message(toy_pipeline)
    assert "pipeline.yaml:3" in text
    assert "not a directory" in text


def test_a_circle_of_three(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "name: first}", "name: first, from: third}")
    with toy_pipeline.open("a") as file:
        file.write("  - {type: toy, name: third}\n")
    assert "in a circle" in message(toy_pipeline)


def test_references_outside_the_plan_must_be_artifacts(toy_pipeline: Path) -> None:
    edit(toy_pipeline, "path: model", "path: nowhere")
    with pytest.raises(CompressError):
        plan(toy_pipeline)
