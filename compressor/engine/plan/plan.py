"""The plan of a run: typed, hashed steps, and the builder of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.store import Store
from compressor.config.document import Location
from compressor.data.contract import SourceContext
from compressor.engine.contract import DataNeed, Estimate, Pass, PassContext, PassOutput
from compressor.engine.plan.pipeline import Pipeline, Step
from compressor.evaluation.metrics import reference_metrics
from compressor.evaluation.records import EvaluateConfig
from compressor.models.capabilities.signature import Signature
from compressor.models.facts import ModelFacts

State = Literal["cached", "measure", "resume", "build", "given", "damaged"]


class Builder(Protocol):
    """Interface that the runner calls: a source model, or a pass with its config."""

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Check the inputs cheaply."""

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Write the model."""

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Reload the written model."""


@dataclass(frozen=True, slots=True)
class PassBuilder:
    """A pass with its config; it reads the input ``parent``."""

    step: Step

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """See ``Pass.requires``."""
        self.step.pass_.requires(self.step.config, inputs["parent"], context)

    @property
    def previews(self) -> bool:
        """True if the pass implements ``preview``."""
        return type(self.step.pass_).preview is not Pass.preview

    def preview(
        self, inputs: Mapping[str, Artifact], context: PassContext
    ) -> list[Mapping[str, Any]]:
        """See ``Pass.preview``."""
        return self.step.pass_.preview(self.step.config, inputs["parent"], context)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """See ``Pass.run``."""
        return self.step.pass_.run(self.step.config, inputs["parent"], out, context)

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """See ``Pass.ensures``."""
        self.step.pass_.ensures(self.step.config, inputs["parent"], out, context)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the bytes of a step's model, beside inputs, seed and machine."""

    pass_name: str
    pass_version: int
    config: Mapping[str, Any]
    """Every field of the pass, defaults included."""
    code: str | None
    """sha256 of the pass's package if it is not one of this project's."""
    tools: Mapping[str, str]
    """Library to version."""
    data: Mapping[str, str]
    """Data set to digest, of the sets that the pass reads."""


@dataclass(frozen=True, slots=True)
class DataUse:
    """A data set that a step runs a model on, in its pass or in its measurement."""

    need: DataNeed
    location: Location
    """Place of the field that names the data set."""
    model: ModelFacts
    """Facts of the model, as planned."""
    measures: bool = False
    """True if the step's own model is measured on the data set."""

    def signature(self) -> Signature | None:
        """Return inputs and outputs of the model; None if they are not known."""
        return self.model.signature() if self.measures else self.model.capability(Signature)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step whose id is known."""

    name: str
    recipe: Recipe
    format: str
    """Name of the model format that the step produces."""
    artifact_id: str
    inputs: Mapping[str, str]
    """Role to the name of a planned step."""
    state: State
    estimate: Estimate
    builder: Builder | None = None
    """None for an artifact that is used as it is."""
    given: Artifact | None = None
    """The artifact itself if the pipeline names an existing one."""
    measured: str = ""
    """Digest of what is to be measured; empty for nothing."""
    reference: str | None = None
    """The planned step to compare with: this one or an earlier one; None if nothing is compared."""
    data: tuple[DataUse, ...] = ()
    """The data sets that the step runs models on."""

    @property
    def pass_name(self) -> str:
        """Name of the pass that builds the step."""
        return self.recipe.pass_name

    @property
    def parent(self) -> str | None:
        """The step whose artifact is read, if any."""
        return self.inputs.get("parent")

    @property
    def directory(self) -> str:
        """Name of the artifact's directory."""
        return self.given.name if self.given else f"{self.pass_name}-{self.artifact_id[:12]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, ordered so that the inputs of each come before it."""

    pipeline: Pipeline
    store: Store
    seed: int
    device: str
    sources: SourceContext
    steps: tuple[PlannedStep, ...]
    notes: tuple[str, ...] = ()
    """Lines for the user about the data sets that are not errors, such as skipped files."""

    def step(self, name: str) -> PlannedStep:
        """Return the step of a name."""
        return next(step for step in self.steps if step.name == name)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values, for `plan --json`."""
    return {
        "pipeline": plan.pipeline.config.name,
        "store": str(plan.store.root),
        "seed": plan.seed,
        "steps": [
            {
                "name": step.name,
                "pass": step.pass_name,
                "kind": step.format,
                "id": step.artifact_id,
                "artifact": step.directory,
                "inputs": dict(step.inputs),
                "state": step.state,
                "estimate": {
                    "parameters": step.estimate.model.parameters,
                    "macs": step.estimate.model.macs,
                    "seconds": step.estimate.seconds,
                    "peak_memory_bytes": step.estimate.peak_memory_bytes,
                    "disk_bytes": step.estimate.disk_bytes,
                },
            }
            for step in plan.steps
        ],
        "notes": list(plan.notes),
    }


@dataclass(frozen=True, slots=True)
class CheckedPipeline:
    """A pipeline without problems."""

    steps: tuple[str, ...]
    """Names of the source and of all steps."""
    notes: tuple[str, ...]
    """Lines for the user that are not errors, such as files that are not read."""


def evaluate_of(pipeline: Pipeline, *, compared: bool) -> EvaluateConfig:
    """Return what is measured of a step; without a reference, comparing metrics are left out."""
    evaluate = pipeline.config.evaluate
    accuracy = evaluate.accuracy
    if compared or accuracy is None:
        return evaluate
    names = tuple(
        name for name in accuracy.metrics if name not in reference_metrics(accuracy.metrics)
    )
    if not names:
        return evaluate.without_accuracy()
    return evaluate.model_copy(update={"accuracy": accuracy.model_copy(update={"metrics": names})})
