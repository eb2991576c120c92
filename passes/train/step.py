"""The ``train`` pass: the shared loop with labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compressor.artifacts.store import Artifact
from compressor.config import discovery
from compressor.config.record import DataName
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from passes.common.config import TrainingConfig


class TrainConfig(PassConfig):
    """The fields of a ``train`` step."""

    train: DataName = "train"
    """The set that is learnt from."""
    validation: DataName | None = "validation"
    """The set that is looked at while training; early stopping decides by it. Never the test set."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on."""


class Train(Pass[TrainConfig]):
    """Trains a model with labels, and the family's own loss terms, where it has any."""

    name = "train"
    version = 1
    accepts = frozenset({"torch"})
    produces = "torch"
    Config = TrainConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    capabilities = (TrainingHeads,)

    def estimate(self, config: TrainConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """From the model's arithmetic."""
        from passes.common.estimates import training_estimate

        return training_estimate(parent, config.training)

    def requires(self, config: TrainConfig, parent: Artifact, context: PassContext) -> None:
        """Finite weights to start from, and data that fit the model."""
        from compressor.models.checkpoint.loading import check_finite
        from passes.common.requirements import check_data

        check_finite(parent.model)
        check_data(parent, (config.train, config.validation), context)

    def run(
        self, config: TrainConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Train; checkpoints go to ``context.work``."""
        from compressor.models.checkpoint.loading import load_module, read_description, save_module
        from passes.common.device import prepare_torch
        from passes.common.losses import hard_cross_entropy
        from passes.common.outcome import summary_of
        from passes.common.training import fit

        prepare_torch(context)
        name, model_config = read_description(parent.model)
        family = discovery.load(discovery.FAMILIES, name)
        heads = family.require(TrainingHeads, model_config)
        model = load_module(parent.model, context.device)
        result = fit(
            model,
            context.data(config.train),
            config.training,
            seed=context.seed,
            objective=lambda outputs, batch, _: hard_cross_entropy(
                heads.logits(model, outputs), batch
            ),
            checkpoint_dir=context.work,
            validation=context.data(config.validation) if config.validation else None,
            progress=lambda done, total, figures: context.progress("step", done, total, figures),
            note=context.note,
        )
        save_module(model, name, model_config, out)
        return PassOutput(summary_of(result))

    def ensures(
        self,
        config: TrainConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """It loads again, and its weights are finite."""
        from compressor.models.checkpoint.loading import check_finite, load_module

        check_finite(out)
        load_module(out, context.device)
