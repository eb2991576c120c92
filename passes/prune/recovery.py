"""What a cut loses is won back: the shared training loop, with the unpruned parent as the teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from compressor.engine.contract import PassContext
from compressor.models.capabilities.training_heads import TrainingHeads
from passes.common.losses import (
    distillation_losses,
    hard_cross_entropy,
    probe_outputs,
    shared_heads,
)
from passes.common.training import Objective, TrainingResult, fit
from passes.prune.planning import Subject
from passes.prune.schedule import Stage
from passes.prune.step import Recovery


def recover(
    recovery: Recovery,
    student: Subject,
    teacher: Subject,
    stage: Stage,
    folder: Path,
    context: PassContext,
) -> TrainingResult:
    """Train the student in place, with the round's part of all steps; its checkpoints go into ``folder``."""
    return fit(
        student.module,
        context.data(recovery.train),
        recovery.training,
        seed=context.seed,
        objective=_objective(recovery, student, teacher, context),
        checkpoint_dir=folder,
        validation=context.data(recovery.validation) if recovery.validation else None,
        progress=lambda done, total, figures: context.progress(_step(stage), done, total, figures),
        note=context.note,
        stretch=stage.steps(recovery.training.steps),
    )


def _step(stage: Stage) -> str:
    return "step" if stage.count == 1 else f"round {stage.number} of {stage.count}, step"


def _objective(
    recovery: Recovery, student: Subject, teacher: Subject, context: PassContext
) -> Objective:
    """For each head of the family: w·(T²·soft cross-entropy) + (1 − w)·(hard cross-entropy)."""
    heads_of, weight = student.family.require(TrainingHeads, student.config), recovery.soft_weight
    if weight == 0:
        return lambda outputs, batch, _: hard_cross_entropy(
            heads_of.logits(student.module, outputs), batch
        )
    train = context.data(recovery.train)
    ours, theirs = probe_outputs(student.module, teacher.module, train)
    soft = shared_heads(
        heads_of.logits(student.module, ours), heads_of.logits(teacher.module, theirs), context.note
    )

    def terms(outputs: dict[str, Tensor], batch: dict[str, Tensor], _: float) -> dict[str, Tensor]:
        with torch.no_grad():
            said = heads_of.logits(
                teacher.module, teacher.module(**{name: batch[name] for name in train.input_names})
            )
        taught = {name: said[name] for name in soft}
        heads = heads_of.logits(student.module, outputs)
        return distillation_losses(
            heads, batch, taught, weight=weight, temperature=recovery.temperature
        )

    return terms
