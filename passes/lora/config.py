"""Config of the ``lora`` pass; fields that PEFT has too carry its names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.config.record import DataName, StepName
from compressor.engine.contract import PassConfig
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import is_set, raise_problems

ALL_LINEAR = "all-linear"
_OF_LORA = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


class LoraConfig(PassConfig):
    """Fields of a ``lora`` step."""

    peft_type: Literal["LORA", "IA3"] = "LORA"
    """Kind of the increment. `LORA`: W + B·A of a low rank (Hu et al. 2021). `IA3`: factors of the
    outputs, or the inputs of `feedforward_modules` (Liu et al. 2022); they merge into packed scales
    with no loss but the rounding of the scales."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the increment of each target module."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scale of the increment: it is multiplied by `lora_alpha` / `r`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the inputs of A while training."""
    use_rslora: bool = False
    """Multiply by `lora_alpha` / √r instead, which suits large ranks (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Refused: DoRA divides by the norms of W + B·A, which no graph with packed weights can have
    beside them."""
    target_modules: tuple[str, ...] | str | None = None
    """Modules that get an increment: the ends of their names, such as `[q_proj, v_proj]`, a regular
    expression for whole names, or `all-linear` for all but the head. By default those that PEFT
    lists for the model type."""
    feedforward_modules: tuple[str, ...] | None = None
    """Target modules whose inputs are multiplied, and not their outputs; only with `peft_type:
    IA3`. By default those that PEFT lists for the model type."""
    train: DataName = "train"
    """Data set to train on."""
    validation: DataName | None = "validation"
    """Data set that is evaluated during training, for the report and for early stopping. Do not use
    the test set. `null` for none."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch size, learning rate and so on."""
    teacher: StepName | None = None
    """Step or artifact directory with a model whose logits are soft labels. By default the labels
    of the data set alone count."""
    soft_weight: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Weight of the soft labels in the loss; the labels of the data set have the rest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the soft labels."""

    @model_validator(mode="after")
    def _check_fields(self) -> LoraConfig:
        problems = validation_problems(self.validation, self.training)
        if self.use_dora:
            problems.append(
                "`use_dora` is not supported: DoRA divides by the norms of W + B·A, which packed "
                "weights and ONNX graphs do not have; use LoRA, or `use_rslora`"
            )
        if self.peft_type == "IA3":
            problems += [
                f"`{name}` has no effect with `peft_type: IA3`: leave it out"
                for name in _OF_LORA
                if is_set(self, name)
            ]
        elif is_set(self, "feedforward_modules"):
            problems.append("`feedforward_modules` requires `peft_type: IA3`: leave it out")
        if self.teacher is None:
            problems += [
                f"`{name}` has no effect without `teacher`: leave it out, or name a teacher"
                for name in ("soft_weight", "temperature")
                if is_set(self, name)
            ]
        if "batch_norm" in self.training.model_fields_set:
            problems.append(
                "`training.batch_norm` has no effect: the statistics of the base stay as they are; "
                "leave it out"
            )
        raise_problems([*problems, *self._target_problems()])
        return self

    def _target_problems(self) -> list[str]:
        targets, inner = self.target_modules, self.feedforward_modules
        if targets is not None and not targets:
            return ["`target_modules` is empty: name modules, or leave it out"]
        if self.peft_type == "IA3" and (targets is None) != (inner is None):
            return ["set both `target_modules` and `feedforward_modules`, or neither"]
        if inner is None or not isinstance(targets, tuple):
            return []
        unknown = [name for name in inner if name not in targets]
        return [
            f"`feedforward_modules` has {name!r}, which is not among `target_modules`: add it there"
            for name in unknown
        ]
