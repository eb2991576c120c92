"""Every example is planned as it stands: passes, data, kinds and gates fit."""

from pathlib import Path

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.pipeline import load_pipeline
from compressor.engine.plan import Plan, make_plan

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


def planned(file: Path, store: Path) -> Plan:
    pipeline = load_pipeline(file)
    return make_plan(pipeline, Store(store), SourceContext(pipeline.base))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_has_a_plan(file, tmp_path):
    plan = planned(file, tmp_path)
    assert {step.state for step in plan.steps} == {"build"}


def test_the_examples_share_the_demos_teacher(tmp_path):
    teachers = {
        step.artifact_id for file in EXAMPLES for step in planned(file, tmp_path).steps if step.name == "teacher"
    }
    assert len(teachers) == 1
