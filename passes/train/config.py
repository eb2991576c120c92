"""Config of the ``train`` pass."""

from __future__ import annotations

from pydantic import model_validator

from compressor.config.record import DataName
from compressor.engine.contract import PassConfig
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import raise_problems


class TrainConfig(PassConfig):
    """Fields of a ``train`` step."""

    train: DataName = "train"
    """Data set to train on."""
    validation: DataName | None = "validation"
    """Data set that is evaluated during training, for the report and for early stopping. Do not use
    the test set. `null` for none."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on."""

    @model_validator(mode="after")
    def _check_effects(self) -> TrainConfig:
        raise_problems(validation_problems(self.validation, self.training))
        return self
