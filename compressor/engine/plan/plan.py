"""What a run will do: typed, hashed steps, and what builds each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from compressor.artifacts.kinds import Kind
from compressor.artifacts.store import Artifact, Store
from compressor.data.contract import SourceContext
from compressor.engine.contract import Estimate, Pass, PassContext, PassOutput
from compressor.engine.plan.pipeline import Pipeline, Step
from compressor.evaluation.metrics import referring
from compressor.evaluation.records import EvaluateConfig

State = Literal["cached", "measure", "resume", "build", "given", "damaged"]


class Builder(Protocol):
    """What the runner calls: a source, or a pass with its config."""

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Cheap checks of the inputs."""

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Write the model."""

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Reload what was written."""


@dataclass(frozen=True, slots=True)
class PassBuilder:
    """A pass with its config; the input ``parent`` is the artifact it reads."""

    step: Step

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """As ``Pass.requires``."""
        self.step.pass_.requires(self.step.config, inputs["parent"], context)

    @property
    def previews(self) -> bool:
        """Whether the pass can tell what it would decide."""
        return type(self.step.pass_).preview is not Pass.preview

    def preview(
        self, inputs: Mapping[str, Artifact], context: PassContext
    ) -> list[Mapping[str, Any]]:
        """As ``Pass.preview``."""
        return self.step.pass_.preview(self.step.config, inputs["parent"], context)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """As ``Pass.run``."""
        return self.step.pass_.run(self.step.config, inputs["parent"], out, context)

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """As ``Pass.ensures``."""
        self.step.pass_.ensures(self.step.config, inputs["parent"], out, context)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step whose id is known."""

    name: str
    pass_name: str
    pass_version: int
    kind: Kind
    artifact_id: str
    builder: Builder | None
    """None for an artifact that is given as it is."""
    given: Artifact | None
    inputs: Mapping[str, str]
    """Role to the name of a planned step."""
    config: Mapping[str, Any]
    code: str | None
    tools: Mapping[str, str]
    data: Mapping[str, str]
    """Data set to digest, of those the pass reads."""
    measured: str
    """Digest of what is to be measured; empty for nothing."""
    reference: str | None
    """The planned step that it is compared with: itself or an earlier one; None where nothing is compared."""
    state: State
    estimate: Estimate

    @property
    def parent(self) -> str | None:
        """The step whose artifact is read, if any."""
        return self.inputs.get("parent")

    @property
    def directory(self) -> str:
        """The name of the artifact's directory."""
        return self.given.name if self.given else f"{self.pass_name}-{self.artifact_id[:12]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, in an order in which each finds its inputs done."""

    pipeline: Pipeline
    store: Store
    seed: int
    device: str
    sources: SourceContext
    steps: tuple[PlannedStep, ...]

    def step(self, name: str) -> PlannedStep:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


def evaluate_of(pipeline: Pipeline, *, compared: bool) -> EvaluateConfig:
    """What is measured of a step: without the metrics that compare, where there is nothing to compare with yet."""
    evaluate = pipeline.config.evaluate
    accuracy = evaluate.accuracy
    if compared or accuracy is None:
        return evaluate
    left = tuple(name for name in accuracy.metrics if name not in referring(accuracy.metrics))
    if not left:
        return evaluate.without_accuracy()
    return evaluate.model_copy(update={"accuracy": accuracy.model_copy(update={"metrics": left})})
