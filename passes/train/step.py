"""The ``train`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from passes.common.config import training_problems
from passes.common.data_needs import training_needs
from passes.common.field_problems import check_no_problems
from passes.common.training_pass import TrainingPass, save_trained
from passes.train.config import TrainConfig


class Train(TrainingPass[TrainConfig]):
    """Train a model on labels.

    The loss is the cross-entropy of each head of the model (`logits`, and the auxiliary heads of
    its family) whose labels the data set has, with AdamW.
    Tokenizer, processor and licence are those of the parent.
    """

    name = "train"
    version = 2
    Config = TrainConfig
    capabilities = (TrainingHeads,)

    def data_needs(self, config: TrainConfig) -> tuple[DataNeed, ...]:
        """Return the data sets to train on and to evaluate; both need labels."""
        return training_needs(config.train, config.validation, "type: train")

    def check_applies(self, config: TrainConfig, models: Mapping[str, ModelFacts]) -> None:
        """Check that the fields of the training apply to the model."""
        check_no_problems(training_problems(config.training, "training", models["parent"]))

    def estimate(self, config: TrainConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate time, memory and disk from the parameters and MACs of the model.

        Raises:
            RequirementError: A field does not apply to the model.
        """
        from passes.common.estimates import training_estimate

        self.check_applies(config, {**context.facts, "parent": parent})
        return training_estimate(parent, config.training, data=context.data.get(config.train))

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
        settings, callbacks = RunSettings.of(context), Callbacks.of(context)
        result = fit(model, task, config.training, settings, callbacks)
        save_trained(description, model, parent.model, out)
        return PassOutput(result.summary())
