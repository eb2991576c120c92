"""The ``train`` pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts, facts_of
from passes.common.config import training_problems
from passes.common.data_needs import training_needs
from passes.common.field_problems import check_no_problems
from passes.train.config import TrainConfig


class Train(Pass[TrainConfig]):
    """Train a model on labels.

    The loss is the cross-entropy of each head of the model (`logits`, and the auxiliary heads of
    its family) whose labels the data set has, with AdamW.
    """

    name = "train"
    version = 1
    accepts = frozenset({"torch"})
    produces = "torch"
    Config = TrainConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    capabilities = (TrainingHeads,)

    def data_needs(self, config: TrainConfig) -> tuple[DataNeed, ...]:
        """Return the data sets to train on and to evaluate; both need labels."""
        return training_needs(config.train, config.validation, "type: train")

    def estimate(self, config: TrainConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate time, memory and disk from the parameters and MACs of the model.

        Raises:
            RequirementError: A field does not apply to the model.
        """
        from passes.common.estimates import training_estimate

        check_no_problems(training_problems(config.training, "training", parent))
        return training_estimate(parent, config.training)

    def requires(self, config: TrainConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the fields apply, and that the weights are finite.

        Raises:
            RequirementError: A field does not apply to the model.
            NumericalError: A weight is NaN or infinite.
        """
        from compressor.models.checkpoint.finite import check_finite

        check_no_problems(training_problems(config.training, "training", facts_of(parent.model)))
        check_finite(parent.model)

    def run(
        self, config: TrainConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train the model, with checkpoints in ``context.work``, and save it to ``out``."""
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.loading import load_module
        from passes.common.device import prepare_torch
        from passes.common.losses import hard_cross_entropy
        from passes.common.task import Callbacks, RunSettings, Task
        from passes.common.training import fit

        prepare_torch(context)
        description = read_description(parent.model)
        heads = description.require(TrainingHeads)
        model = load_module(description, context.device)
        task = Task(
            context.data(config.train),
            lambda outputs, batch, _: hard_cross_entropy(heads.logits(model, outputs), batch),
            validation=context.data(config.validation) if config.validation else None,
        )
        settings = RunSettings(context.seed, context.work)
        callbacks = Callbacks(partial(context.progress, "step"), context.note)
        result = fit(model, task, config.training, settings, callbacks)
        description.family.save(model, description.config, out)
        return PassOutput(result.summary())

    def ensures(
        self, config: TrainConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check that the saved model loads, and that its weights are finite."""
        from passes.common.requirements import check_saved_model

        check_saved_model(out, context.device)
