"""The ``distill`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    OUTPUT,
    DataNeed,
    Estimate,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from passes.common.data_needs import training_needs
from passes.common.training_pass import TrainingPass
from passes.distill.config import DistillConfig

_DISTILLATION_COST = 1.4
"""Time of a step with soft labels and features, relative to the passes of both models alone:
measured on the phone bed."""


class Distill(TrainingPass[DistillConfig]):
    """Train a student on the labels and on the outputs of a teacher.

    For each head of the family, loss = w·T²·CE(soft labels) + (1 − w)·CE(hard labels). The
    temperature T is annealed over the training (Hinton et al. 2015; annealing: Jafari et al.
    2021). Hidden states can be matched too (Romero et al. 2015), and samples weighted by the
    student's errors (`feedback`).
    """

    name = "distill"
    version = 2
    Config = DistillConfig
    capabilities = (TrainingHeads,)

    def data_needs(self, config: DistillConfig) -> tuple[DataNeed, ...]:
        """Return the data sets, which student and teacher run on."""
        hard = f"soft_weight: {config.soft_weight:g}" if config.soft_weight < 1 else None
        needs = training_needs(config.train, config.validation, hard, "soft_weight: 1")
        teacher = "parent" if config.teacher is None else "teacher"
        train, *validation = needs
        return (
            replace(train, role=teacher),
            *(replace(need, role=OUTPUT) for need in (train, *validation)),
        )

    def check_applies(self, config: DistillConfig, models: Mapping[str, ModelFacts]) -> None:
        """Check that the fields fit the student and the teacher."""
        from passes.distill.student import check_models, student_facts

        parent = models["parent"]
        student = student_facts(config.student, parent)
        check_models(config, student, models.get("teacher", parent))

    def estimate(self, config: DistillConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate time, memory and disk from the parameters and MACs of both models.

        Raises:
            RequirementError: A field does not fit the student or the teacher.
        """
        from passes.common.estimates import training_estimate
        from passes.distill.student import student_facts

        self.check_applies(config, {**context.facts, "parent": parent})
        teacher = context.facts.get("teacher", parent)
        student = student_facts(config.student, parent)
        data = context.data.get(config.train)
        estimate = training_estimate(student, config.training, teacher, data)
        if estimate.seconds is None:
            return estimate
        return replace(estimate, seconds=_DISTILLATION_COST * estimate.seconds)

    def requires(self, config: DistillConfig, parent: Artifact, context: PassContext) -> None:
        """Check models and weights, and the strata that `feedback` needs.

        Raises:
            RequirementError: A field does not fit the student or the teacher.
            NumericalError: A weight is NaN or infinite.
            DataError: The data sets have other strata.
        """
        from passes.distill.feedback import check_strata

        super().requires(config, parent, context)
        if config.feedback is not None and config.validation is not None:
            check_strata(context.data(config.train), context.data(config.validation))

    def run(
        self, config: DistillConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train the student, with checkpoints in ``context.work``, and save it to ``out``."""
        from passes.distill.distillation import distill

        return distill(config, parent, context.artifacts.get("teacher", parent), out, context)
