"""Arguments and result of the training loop (``training.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from passes.common.accuracy import Evaluation, evaluate_accuracy
from passes.common.sampling import Weights

Objective = Callable[[dict[str, Tensor], dict[str, Tensor], float], dict[str, Tensor]]
"""(outputs, batch, progress in [0, 1)) to the weighted terms of the loss by name, each a scalar."""
Evaluator = Callable[[nn.Module, Dataset, int], Evaluation]
"""(model, validation set, batch size) to the evaluation; the mode of the model is restored."""


@dataclass(frozen=True, slots=True)
class Task:
    """Data and loss of a training."""

    dataset: Dataset
    """``batch(indices, epoch)`` must be a pure function of its arguments."""
    objective: Objective
    validation: Dataset | None = None
    """Evaluated every ``evaluate_every`` steps, and at the end."""
    extra: nn.Module | None = None
    """Module that is trained with the model and not part of it, such as projections of features."""
    evaluate: Evaluator = evaluate_accuracy
    """Evaluates the model on the validation set; by default the accuracy of its ``logits``."""
    keeps_frozen: bool = False
    """True if parameters that need no gradient never change: they are neither saved nor copied.
    False where something else sets them, as observers set scales."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Seed, checkpoints and steps of one call of ``fit``."""

    seed: int
    """Seed of the order of samples, and of dropout."""
    checkpoint_dir: Path
    """Checkpoints are written here, and training resumes from them."""
    stretch: range | None = None
    """Subset of the ``config.steps`` steps to take, with their batches and learning rates; None for
    all. A training can thus be split into calls between which the caller changes the model. Each
    call starts with a new optimizer and a new average of the weights."""

    @classmethod
    def of(cls, context: PassContext) -> RunSettings:
        """Return the settings of a training that is all of a pass."""
        return cls(context.seed, context.work)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that ``fit`` calls; the defaults do nothing."""

    progress: Callable[[int, int, Mapping[str, float]], None] = lambda *_: None
    """(steps done, total steps, metrics), after every step."""
    note: Callable[[str], None] = lambda _: None
    """(line), if a checkpoint cannot be used."""
    before_step: Callable[[float], None] = lambda _: None
    """(part of all steps that is done, in [0, 1)), before every step."""
    on_evaluation: Callable[[int, Evaluation], Weights | None] = lambda *_: None
    """(step, validation result), after every evaluation. Returns sampling weights
    [len(dataset)] for the next steps, or None to keep the present ones."""

    @classmethod
    def of(cls, context: PassContext) -> Callbacks:
        """Return callbacks that report steps and notes to a pass's context."""
        return cls(partial(context.progress, "step"), context.note)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """History of a training; the weights are in the model that was passed to ``fit``."""

    history: list[dict[str, Any]]
    """One entry per evaluation: step, mean terms of the loss since the last, accuracy, slices."""
    steps: int
    """Steps taken, including those before the stretch."""
    kept_step: int
    """Step whose weights were kept: the last, or with ``patience`` the best."""
    stopped_early: bool
    resumed_from: int | None
    """Step of the checkpoint that the call resumed from."""

    def summary(self) -> dict[str, Any]:
        """Return JSON values for the manifest; they do not depend on interruptions."""
        return {
            "history": self.history,
            "steps": self.steps,
            "kept_step": self.kept_step,
            "stopped_early": self.stopped_early,
        }
