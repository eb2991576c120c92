"""Data sets of other classes are refused by the plan, since their labels mean something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.errors import ConfigError

PIPELINE = """\
version: 1
name: classes
model: {family: image-classifier, preset: tiny}
data:
  train: {source: images, path: train, image_size: 16}
  test: {source: images, path: test, image_size: 16}
evaluate:
  accuracy: {data: test, metrics: [top1]}
passes:
  - {type: train, validation: null}
"""


def plan_of(tmp_path: Path, train: str, test: str, text: str = PIPELINE) -> Plan:
    """Plan on sets with folders of the given names, with a picture in each."""
    for split, names in (("train", train), ("test", test)):
        for number, name in enumerate(names.split()):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / "0.png")
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    pipeline = load_pipeline(file)
    return make_plan(pipeline, Store(tmp_path / "store"), SourceContext(tmp_path))


def test_sets_of_equal_classes_are_accepted(tmp_path: Path) -> None:
    assert len(plan_of(tmp_path, "cat dog", "cat dog").steps) == 2


def test_a_set_without_one_of_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, "ant cat dog", "cat dog owl")
    (problem,) = error.value.problems
    assert "differ from those of the data set" in problem.what
    assert "only in 'test': owl" in problem.what
    assert "only in 'train': ant" in problem.what
    assert "numbered: true" in str(problem.remedy)
    assert problem.line in {5, 6}


def test_numbered_classes_may_be_missing(tmp_path: Path) -> None:
    text = PIPELINE.replace("image_size: 16}", "image_size: 16, numbered: true}")
    assert len(plan_of(tmp_path, "0 1 3", "1 2", text).steps) == 2


def test_classes_of_a_set_whose_labels_are_not_used_may_differ(tmp_path: Path) -> None:
    text = PIPELINE.replace("metrics: [top1]", "metrics: [agreement]")
    assert len(plan_of(tmp_path, "cat dog", "all", text).steps) == 2


@pytest.mark.parametrize("numbered", [False, True])
def test_more_classes_than_the_model_has_outputs_are_refused(
    tmp_path: Path, numbered: bool
) -> None:
    text, names = PIPELINE, "a b c d e"
    if numbered:
        text, names = PIPELINE.replace("size: 16}", "size: 16, numbered: true}"), "0 4"
    with pytest.raises(ConfigError, match="the model has 4 outputs") as error:
        plan_of(tmp_path, names, names, text)
    expected = "labels up to 4" if numbered else "5 classes"
    assert all(expected in problem.what for problem in error.value.problems)


def test_fewer_classes_than_outputs_are_a_note(tmp_path: Path) -> None:
    notes = plan_of(tmp_path, "cat dog", "cat dog").notes
    assert [note.partition(" classes, and the model 4 outputs")[0] for note in notes] == [
        "data set 'test' has 2",
        "data set 'train' has 2",
    ]


def test_as_many_classes_as_outputs_are_no_note(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "a b c d", "a b c d").notes == ()


def test_skipped_files_are_notes_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("x")
    plan = plan_of(tmp_path, "cat dog", "cat dog")
    assert any("skipped (1): labels.csv" in note for note in plan.notes)
    assert len(set(plan.notes)) == len(plan.notes)
