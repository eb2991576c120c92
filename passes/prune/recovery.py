"""Recovery training after a cut, with the unpruned parent as the teacher."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compressor.engine.contract import PassContext
from passes.common.losses import (
    distillation_losses,
    hard_cross_entropy,
    probe_outputs,
    shared_heads,
)
from passes.common.task import Callbacks, Objective, RunSettings, Task, TrainingResult
from passes.common.training import fit
from passes.prune.config import RecoveryConfig
from passes.prune.model import PrunableModel
from passes.prune.schedule import Round


def recover(
    config: RecoveryConfig,
    student: PrunableModel,
    teacher: PrunableModel,
    round_: Round,
    folder: Path,
    context: PassContext,
) -> TrainingResult:
    """Train the student in place for the steps of a round.

    Args:
        config: the data sets, the training and the loss.
        student: the pruned model.
        teacher: the unpruned parent.
        round_: the round, which takes its part of the steps.
        folder: the folder for checkpoints; training resumes from them.
        context: the context of the pass.
    """
    task = Task(
        context.data(config.train),
        _objective(config, student, teacher, context),
        validation=context.data(config.validation) if config.validation else None,
    )
    settings = RunSettings(context.seed, folder, round_.steps(config.training.steps))
    callbacks = Callbacks(partial(context.progress, _activity(round_)), context.note)
    return fit(student.module, task, config.training, settings, callbacks)


def _activity(round_: Round) -> str:
    return "step" if round_.count == 1 else f"round {round_.number} of {round_.count}, step"


def _objective(
    config: RecoveryConfig, student: PrunableModel, teacher: PrunableModel, context: PassContext
) -> Objective:
    """Return the loss of each head: w · T² · soft + (1 − w) · hard cross-entropy."""
    heads, weight = student.heads, config.soft_weight
    if weight == 0:
        return lambda outputs, batch, _: hard_cross_entropy(
            heads.logits(student.module, outputs), batch
        )
    train = context.data(config.train)
    student_outputs, teacher_outputs = probe_outputs(student.module, teacher.module, train)
    shared = shared_heads(
        heads.logits(student.module, student_outputs),
        heads.logits(teacher.module, teacher_outputs),
        context.note,
    )

    def losses(outputs: dict[str, Tensor], batch: dict[str, Tensor], _: float) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs_of_teacher = teacher.module(**{name: batch[name] for name in train.input_names})
            teacher_logits = heads.logits(teacher.module, outputs_of_teacher)
        return distillation_losses(
            heads.logits(student.module, outputs),
            batch,
            {name: teacher_logits[name] for name in shared},
            weight=weight,
            temperature=config.temperature,
        )

    return losses
