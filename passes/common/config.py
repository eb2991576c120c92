"""What a training recipe can say; plain values, so that a plan can check them without torch."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from compressor.config.record import Record

Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(Record):
    """One recipe for the training loop that all training passes share."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate of AdamW (Loshchilov & Hutter 2019)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Fraction = 0.1
    """Part of the steps in which the learning rate rises from 0."""
    final: Fraction = 0.0
    """What is left of the learning rate at the end, as a fraction of the highest."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay of matrices and kernels; vectors (norms, biases) have none."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient's norm over all weights is clipped to this."""
    batch_norm: Literal["learn", "freeze"] = "learn"
    """Whether batch normalizations go by each batch and learn its statistics, or keep those they have: for few data, or data
    unlike what the model was first trained on."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, which is what is evaluated and kept; 0 for none."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two looks at the validation split; 0 looks only at the end."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Evaluations without a better accuracy after which training stops; the best weights are then kept."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two checkpoints. A killed run goes on from the last one and ends in the same bytes."""

    def rate(self, step: int) -> float:
        """The learning rate of the step, counted from 0."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warm) / max(1, self.steps - warm)
        fall = (1 + cos(pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.learning_rate * (self.final + (1 - self.final) * fall)
