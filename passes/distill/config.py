"""Config of the ``distill`` pass."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.config.record import DataName, LeftOutOfIds, Record, StepName
from compressor.engine.contract import PassConfig
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import is_set, raise_problems

TemperatureSchedule = Literal["linear", "cosine", "steps"]


class Student(Record):
    """Model that is trained; set one of the fields."""

    preset: str | None = None
    """A preset of the parent's family, randomly initialized."""
    config: dict[str, Any] | None = None
    """The parent's config with these fields replaced, randomly initialized."""
    slim: str | dict[str, Any] | None = None
    """A preset, or the parent's config with these fields replaced. Weights that have the same name
    and shape in the teacher are copied from it, the others are randomly initialized."""
    parent: Literal[True] | None = None
    """The parent with its weights, for example after pruning; set `teacher` to another model."""

    @model_validator(mode="after")
    def _check_one_is_set(self) -> Student:
        fields = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(fields) != 1:
            raise ValueError(
                "set one of preset, config, slim or parent; set are: "
                f"{' and '.join(fields) or 'none'}"
            )
        return self


class Temperature(Record):
    """Temperature of the soft labels in the course of the training."""

    start: Annotated[float, Field(gt=0)] = 5.0
    """Temperature at the first step."""
    end: Annotated[float, Field(gt=0)] = 1.0
    """Temperature at the last step."""
    schedule: TemperatureSchedule = "linear"
    """Interpolation between `start` and `end`: along a line, along half a cosine wave, or in
    `steps` equal plateaus."""
    steps: Annotated[int, Field(ge=2)] = 5
    """Number of plateaus of `schedule: steps`."""

    @model_validator(mode="after")
    def _check_effects(self) -> Temperature:
        problems = []
        if self.schedule != "steps" and is_set(self, "steps"):
            problems.append(f"`steps` has no effect with `schedule: {self.schedule}`: leave it out")
        if self.start == self.end and is_set(self, "schedule"):
            problems.append("`schedule` has no effect if `start` equals `end`: leave it out")
        raise_problems(problems)
        return self


class Features(Record):
    """Matching of hidden states between student and teacher (FitNets, Romero et al. 2015).

    Linear projections map the student's width to the teacher's. They are trained with the student
    and discarded.
    """

    names: tuple[str, ...] = ()
    """Hidden states to match, by the names that the model's family lists; all by default, none if
    `modules` is set."""
    modules: Annotated[dict[str, str], LeftOutOfIds()] = {}  # noqa: RUF012 - pydantic copies it
    """Modules whose outputs are matched, in any model: the path of a module in the student, as
    `named_modules()` gives it, to that of a module in the teacher, such as `{encoder.layer.1:
    encoder.layer.3}`. Of several tensors that a module returns the first counts. Maps of other
    sizes are averaged to the smaller one; of tokens and a map the means over all positions
    count."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the matching term in the loss."""


class Feedback(Record):
    """Sampling weights by validation error: slices with more errors are sampled more often."""

    start: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Part of the training after which evaluations change the sampling weights."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of the error of a slice relative to the error of the whole set."""
    limit: Annotated[float, Field(gt=1)] = 3.0
    """Largest sampling weight; the smallest is its inverse."""


class DistillConfig(PassConfig):
    """Fields of a ``distill`` step."""

    student: Student
    """Model that is trained."""
    teacher: StepName | None = None
    """Step or artifact directory whose model gives the soft labels; the parent by default."""
    train: DataName = "train"
    """Data set to train on."""
    validation: DataName | None = "validation"
    """Data set that is evaluated during training, for the report, early stopping and feedback. Do
    not use the test set. `null` for none."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight of the soft labels in the loss of each head; the hard labels have the rest."""
    temperature: Temperature = Temperature()
    """Temperature of the soft labels."""
    features: Features | None = None
    """Matching of hidden states; off by default."""
    feedback: Feedback | None = None
    """Sampling weights by validation error; off by default."""

    @property
    def uses_teacher(self) -> bool:
        """True if the loss contains a term of the teacher."""
        return self.soft_weight > 0 or self.features is not None

    @model_validator(mode="after")
    def _check_fields(self) -> DistillConfig:
        problems = validation_problems(self.validation, self.training)
        if self.student.parent is not None and self.teacher is None:
            problems.append("`student: {parent: true}` needs another model as its `teacher`")
        raise_problems([*problems, *self._soft_label_problems(), *self._feedback_problems()])
        return self

    def _soft_label_problems(self) -> list[str]:
        problems = []
        if self.soft_weight == 0 and is_set(self, "temperature"):
            problems.append("`temperature` has no effect with `soft_weight: 0`: leave it out")
        if not self.uses_teacher and self.teacher is not None and self.student.slim is None:
            problems.append(
                "`teacher` has no effect with `soft_weight: 0` and without `features`: "
                "leave it out, or use a `train` step"
            )
        return problems

    def _feedback_problems(self) -> list[str]:
        if self.feedback is None:
            return []
        if self.validation is None:
            return ["`feedback` needs a `validation` set to evaluate"]
        steps, every = self.training.steps, self.training.evaluate_every
        if every > 0 and any(
            step >= self.feedback.start * steps for step in range(every, steps, every)
        ):
            return []
        return [
            "`feedback` has no effect: no evaluation falls between its `start` and the last step; "
            "set `training.evaluate_every`, or start earlier"
        ]
