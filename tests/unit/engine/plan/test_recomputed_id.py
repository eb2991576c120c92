"""Ids computed again from manifests: equal for what was planned, different after any change."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.artifacts.manifest import FileEntry, Manifest, PassRecord
from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.machine import environment
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan, PlannedStep
from compressor.engine.plan.planner import make_plan
from compressor.engine.plan.recomputed_id import id_problem
from tests.support.tiny_files import tiny_onnx

PHONE = Path(__file__).parents[4] / "examples" / "phone"
NO_FILES: dict[str, FileEntry] = {}


def manifest_of(plan: Plan, step: PlannedStep, files: dict[str, FileEntry]) -> Manifest:
    """Return the manifest that a planned step would have, with these files."""
    ids = {planned.name: planned.artifact_id for planned in plan.steps}
    recipe = step.recipe
    return Manifest(
        id=step.artifact_id,
        step=step.name,
        format=step.format,
        parents={role: ids[name] for role, name in step.inputs.items()},
        pass_=PassRecord(
            name=recipe.pass_name,
            version=recipe.pass_version,
            config=dict(recipe.config),
            code=recipe.code,
        ),
        seed=plan.seed,
        tools=dict(recipe.tools),
        data=dict(recipe.data),
        files=files,
        reports={},
        measured="",
        metrics=(),
        summary={},
        environment=environment(plan.pipeline.config.threads, plan.device),
        created="",
        seconds=0.0,
        peak_rss_bytes=0,
    )


def plan_of(file: Path, store: Path) -> Plan:
    """Return the plan of a pipeline file."""
    pipeline = load_pipeline(file, ())
    return make_plan(pipeline, Store(store), SourceContext(pipeline.base))


@pytest.mark.parametrize("name", ["pipeline", "awq", "prune", "int8"])
def test_the_id_of_every_planned_step_is_computed_again(name: str, tmp_path: Path) -> None:
    plan = plan_of(PHONE / f"{name}.yaml", tmp_path)
    for step in plan.steps:
        manifest = manifest_of(plan, step, NO_FILES)
        assert id_problem(manifest) is None, step.name
        changed = manifest.model_copy(update={"seed": manifest.seed + 1})
        assert id_problem(changed) is not None, f"the config of {step.name} was understood"


def test_every_statement_that_an_id_covers_is_checked(tmp_path: Path) -> None:
    plan = plan_of(PHONE / "pipeline.yaml", tmp_path)
    manifest = manifest_of(plan, plan.step("pruned"), NO_FILES)
    parents = {**manifest.parents, "teacher": "0" * 64}
    config = {**manifest.pass_.config, "soft_weight": 0.25}
    for change in (
        {"parents": parents},
        {"tools": {"torch": "0"}},
        {"data": dict.fromkeys(manifest.data, "0" * 64)},
        {"pass_": manifest.pass_.model_copy(update={"version": 99})},
        {"pass_": manifest.pass_.model_copy(update={"config": config})},
        {"environment": manifest.environment.model_copy(update={"threads": 7})},
    ):
        assert id_problem(manifest.model_copy(update=change)) is not None, change
    unknown = manifest.pass_.model_copy(update={"name": "of-another-package"})
    assert id_problem(manifest.model_copy(update={"pass_": unknown})) is None, "cannot be checked"


def test_the_files_of_a_copied_source_are_checked(toy_pipeline: Path, tmp_path: Path) -> None:
    plan = plan_of(toy_pipeline, tmp_path / "store")
    import hashlib

    content = tiny_onnx()
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    source = manifest_of(plan, plan.step("source"), {"model/model.onnx": entry})
    assert id_problem(source) is None
    other = {"model/model.onnx": FileEntry(sha256="0" * 64, bytes=len(content))}
    problem = id_problem(source.model_copy(update={"files": other}))
    assert problem == "its id is that of a source model with other files"
