"""Look up the steps of a plan in a store."""

from __future__ import annotations

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.store import Store
from compressor.engine.plan.plan import PlannedStep, State
from compressor.errors import DamagedArtifactError
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import StoredModel


def state_of(store: Store | None, pass_name: str, artifact_id: str, measured: str) -> State:
    """Return the state of a step; "measure" if its artifact has another measurement digest."""
    if store is None:
        return "build"
    try:
        artifact = store.find(pass_name, artifact_id)
    except DamagedArtifactError:
        return "damaged"
    if artifact is not None:
        return "cached" if artifact.manifest.measured == measured else "measure"
    return "resume" if store.has_staging(artifact_id) else "build"


def measured_copy(store: Store | None, step: PlannedStep, measured: str) -> Artifact | None:
    """Return the copy of an artifact of another store that an earlier run has measured."""
    if state_of(store, step.pass_name, step.artifact_id, measured) != "cached":
        return None
    assert store is not None  # noqa: S101 - without a store nothing is cached
    return store.find(step.pass_name, step.artifact_id)


def facts_of_artifact(artifact: Artifact) -> ModelFacts:
    """Return the facts of the model of an artifact."""
    model = StoredModel.of(artifact)
    return model.format.facts(model.path)
