"""Tests that a run detects manifests that have changed since."""

from pathlib import Path

import pytest

from compressor.artifacts.manifest import Manifest
from compressor.artifacts.verifying import verify_all
from compressor.errors import UsageError
from tests.support.cli import cli


def test_a_valid_manifest_that_differs_from_the_runs_is_reported(toy_pipeline: Path) -> None:
    store = toy_pipeline.parent / "store"
    assert cli("run", toy_pipeline, "-o", store).returncode == 0
    run = next((store / "runs").iterdir())
    assert set(verify_all([run]).values()) == {None}
    artifact = next(store.glob("toy-*"))
    changed = Manifest.model_validate_json((artifact / "manifest.json").read_bytes()).model_copy(
        update={"seed": 9}
    )
    (artifact / "manifest.json").write_text(changed.sealed().model_dump_json())
    assert verify_all([artifact]) == {artifact: None}, "the artifact itself is valid"
    problems = [problem for problem in verify_all([run]).values() if problem]
    assert len(problems) == 1
    assert "its manifest has changed since the run" in problems[0]
    assert cli("verify", run).returncode == 4
    with pytest.raises(UsageError):
        verify_all([toy_pipeline.parent / "model"])
