"""Every example has a plan: passes, data, formats and gates fit together.

Tiny models and data stand in for what ``prepare.py`` fetches.
"""

import shutil
from pathlib import Path

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from tests.support.example_files import write_stand_in

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.yaml"))


def plan_example(file: Path, work: Path) -> Plan:
    """Return the plan of a copy of an example in ``work``."""
    copy = work / file.name
    if not copy.exists():
        for source in (file, *file.parent.glob("*.py")):
            shutil.copy(source, work)
        if "fetched/" in file.read_text():
            write_stand_in(file.parent.name, work / "fetched")
    pipeline = load_pipeline(copy)
    sources = SourceContext(pipeline.base, allow_code=True)
    return make_plan(pipeline, Store(work / "store"), sources)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_example_has_a_plan(file, tmp_path):
    plan = plan_example(file, tmp_path)
    assert {step.state for step in plan.steps} == {"build"}


def test_the_phone_examples_share_one_teacher(tmp_path):
    phone = [file for file in EXAMPLES if file.parent.name == "phone"]
    teachers = {
        step.artifact_id
        for file in phone
        for step in plan_example(file, tmp_path).steps
        if step.name == "teacher"
    }
    assert len(teachers) == 1
