"""The ``distill`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config import discovery
from compressor.config.record import DataName, Record, StepName
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.errors import RequirementError
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts
from passes.common.config import TrainingConfig


class Student(Record):
    """What learns: a preset, a config, a slimmed config of the teacher, or the parent itself; one of them."""

    preset: str | None = None
    """A preset of the parent's family, freshly initialised."""
    config: dict[str, Any] | None = None
    """The parent's config with these fields replaced, freshly initialised."""
    slim: str | dict[str, Any] | None = None
    """A preset, or the parent's config with these fields replaced; weights whose shape is the teacher's are copied from it."""
    parent: Literal[True] | None = None
    """The parent with its weights, as after pruning; then `teacher:` names another artifact."""

    @model_validator(mode="after")
    def _one_of(self) -> Student:
        given = [
            name
            for name in ("preset", "config", "slim", "parent")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give one of preset, config, slim or parent, not {' and '.join(given) or 'none'}"
            )
        return self


class Temperature(Record):
    """The temperature of the soft labels over training."""

    start: Annotated[float, Field(gt=0)] = 5.0
    """At the first step."""
    end: Annotated[float, Field(gt=0)] = 1.0
    """At the last step."""
    schedule: Literal["linear", "cosine", "steps"] = "linear"
    """How it gets from one to the other."""
    steps: Annotated[int, Field(ge=2)] = 5
    """Plateaus of the `steps` schedule."""


class Features(Record):
    """Matching of inner states, through linear projections that are thrown away (FitNets)."""

    names: tuple[str, ...] = ()
    """Which of the family's features; all of them by default."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the matching term."""


class Feedback(Record):
    """Online feedback: the student is measured on the validation split while it trains, and sees more of what it fails at."""

    start: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The part of training after which it begins."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Exponent on a slice's relative error."""
    limit: Annotated[float, Field(gt=1)] = 3.0
    """The largest sampling weight, and the inverse of the smallest."""


class DistillConfig(PassConfig):
    """The fields of a ``distill`` step."""

    student: Student
    """What learns."""
    teacher: StepName | None = None
    """Whom it learns from: a step or an artifact directory; by default the parent."""
    train: DataName = "train"
    """The set that is learnt from."""
    validation: DataName | None = "validation"
    """The set that early stopping and feedback look at; never the test set."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight of the soft labels, for each of the family's heads; the hard labels have the rest."""
    temperature: Temperature = Temperature()
    """The temperature of the soft labels."""
    features: Features | None = None
    """Matching of inner states; off by default."""
    feedback: Feedback | None = None
    """Online feedback; off by default."""

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        if self.feedback is not None and self.validation is None:
            raise ValueError("`feedback` needs a `validation` set to look at")
        if self.student.parent is not None and self.teacher is None:
            raise ValueError(
                "`student: {parent: true}` needs a `teacher`: the parent cannot teach itself"
            )
        return self


class Distill(Pass[DistillConfig]):
    """Trains a smaller model to answer as a larger one does.

    For each head of the family, loss = w·T²·CE(soft labels) + (1 − w)·CE(hard labels), the temperature T annealed over
    training (Hinton et al. 2015; annealing: Jafari et al. 2021), optionally with feature matching (Romero et al. 2015) and
    online feedback.
    """

    name = "distill"
    version = 1
    accepts = frozenset({"torch"})
    produces = "torch"
    Config = DistillConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def needs(self, config: DistillConfig) -> tuple[type[Capability], ...]:
        """Return heads, and feature taps where features are matched."""
        return (TrainingHeads, FeatureTaps) if config.features else (TrainingHeads,)

    def estimate(self, config: DistillConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """From the arithmetic of both models."""
        from passes.common.estimates import training_estimate

        teacher = context.facts.get("teacher", parent)
        student = parent
        if (
            parent.family is not None
            and parent.config is not None
            and config.student.parent is None
        ):
            student = student_facts(config.student, parent)
        return training_estimate(student, config.training, forward_only=teacher)

    def requires(self, config: DistillConfig, parent: Artifact, context: PassContext) -> None:
        """Teacher and student must be models of one family, for their answers to mean the same; the data must fit them."""
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.safetensors_files import check_finite
        from passes.common.requirements import check_data

        teacher = context.artifacts.get("teacher", parent)
        names = {read_description(artifact.model).family.name for artifact in (parent, teacher)}
        if len(names) > 1:
            raise RequirementError(
                f"teacher and student are of different families: {' and '.join(sorted(names))}"
            )
        check_finite(teacher.model)
        check_data(teacher, (config.train, config.validation), context)

    def run(
        self, config: DistillConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train the student; checkpoints go to ``context.work``."""
        from passes.distill.training import distill

        return distill(config, parent, context.artifacts.get("teacher", parent), out, context)

    def ensures(
        self,
        config: DistillConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """It loads again, and its weights are finite."""
        from compressor.models.checkpoint.loading import load_module
        from compressor.models.checkpoint.safetensors_files import check_finite

        check_finite(out)
        load_module(out, context.device)


def student_config(student: Student, family: Family[Any], parent: Record) -> Record:
    """The student's architecture.

    Raises:
        RequirementError: there is no such preset, or the fields do not fit.
    """
    preset = student.slim if isinstance(student.slim, str) else student.preset
    if preset is not None:
        if preset not in family.presets:
            remedy = discovery.suggestion(preset, list(family.presets))
            raise RequirementError(f"{family.name} has no preset {preset!r}", remedy=remedy)
        return family.presets[preset]
    fields = student.config if student.config is not None else student.slim
    if not isinstance(fields, dict):
        return parent
    try:
        slimmed: Record = family.slim(parent, **fields)
    except ValueError as error:
        raise RequirementError(
            f"the student's config does not fit {family.name}: {error}"
        ) from error
    return slimmed


def student_facts(student: Student, parent: ModelFacts) -> ModelFacts:
    """What the student will be."""
    import json

    family: Family[Any] = discovery.load(discovery.FAMILIES, str(parent.family))
    config = student_config(
        student, family, family.Config.model_validate_json(json.dumps(dict(parent.config or {})))
    )
    parameters = sum(family.parameters(config).values())
    return ModelFacts(
        family.name,
        config.model_dump(mode="json"),
        parameters,
        family.macs(config) or None,
        4 * parameters,
    )
