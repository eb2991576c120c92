"""Config of the training loop."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from compressor.config.record import BatchSize, Record
from compressor.models.architecture import Architecture
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.facts import ModelFacts
from passes.common.field_problems import FieldProblem, is_set, raise_problems

Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(Record):
    """Optimizer, schedule and checkpoints of a training with AdamW."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Number of optimizer steps."""
    batch_size: BatchSize = 64
    """Samples per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of AdamW (Loshchilov & Hutter 2019)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: Annotated[
        Fraction, Field(validation_alias=AliasChoices("warmup_ratio", "warmup"))
    ] = 0.1
    """Part of the steps in which the learning rate rises linearly from 0 to its peak."""
    min_lr_ratio: Annotated[
        Fraction, Field(validation_alias=AliasChoices("min_lr_ratio", "final"))
    ] = 0.0
    """Learning rate at the end of the decay, as a fraction of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay of matrices and kernels; vectors (norms, biases) have none."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of the gradient over all weights; larger gradients are scaled down to it."""
    batch_norm: Literal["learn", "freeze"] = "learn"
    """Batch normalizations use the statistics of each batch and update their running statistics
    (`learn`), or use their running statistics unchanged (`freeze`): for few samples, or samples
    unlike those that the model was first trained on."""
    ema_decay: Annotated[
        float, Field(ge=0, lt=1, validation_alias=AliasChoices("ema_decay", "average"))
    ] = 0.0
    """Decay of an exponential moving average of the weights. The averaged weights are evaluated and
    saved. 0 turns averaging off."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two evaluations on the validation set; 0 evaluates only after the last step."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations without a better accuracy, and keep the weights of the best
    evaluation. By default all steps are taken and the last weights are kept."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two checkpoints. A killed run resumes from the last one, and ends with the same
    bytes as a run that was not killed."""

    @model_validator(mode="after")
    def _check_effects(self) -> TrainingConfig:
        problems = []
        if self.schedule == "constant" and is_set(self, "min_lr_ratio"):
            problems.append("`min_lr_ratio` has no effect with `schedule: constant`: leave it out")
        elif self.warmup_ratio == 1:
            problems += [
                f"`{name}` has no effect with `warmup_ratio: 1`: leave it out"
                for name in ("schedule", "min_lr_ratio")
                if is_set(self, name)
            ]
        if self.patience is not None and self.evaluate_every == 0:
            problems.append("`patience` counts evaluations: set `evaluate_every`, or leave it out")
        raise_problems(problems)
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup_steps = round(self.warmup_ratio * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        decay = (1 + cos(pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.learning_rate * (self.min_lr_ratio + (1 - self.min_lr_ratio) * decay)


def training_problems(
    training: TrainingConfig, path: str, model: ModelFacts | Architecture
) -> list[FieldProblem]:
    """Return the fields of a training that do not apply to a model.

    Args:
        training: the training.
        path: path of its field in the config of the pass.
        model: the model that is trained; kinds of layers that it does not state are not checked.
    """
    architecture = model.architecture() if isinstance(model, ModelFacts) else model
    if architecture is not None:
        problem = architecture.family.training_problem(architecture.config)
        if problem is not None:
            return [FieldProblem(path, *problem)]
    layers = model.capability(LayerKinds)
    if "batch_norm" not in training.model_fields_set or layers is None or layers.batch_norms:
        return []
    return [
        FieldProblem(
            f"{path}.batch_norm",
            "the model has no batch normalization",
            f"leave `{path}.batch_norm` out",
        )
    ]


def validation_problems(validation: str | None, training: TrainingConfig) -> list[str]:
    """Return the fields of a training that have no effect without a validation set."""
    if validation is None and training.patience is not None:
        return ["`training.patience` has no effect with `validation: null`: name a validation set"]
    return []
