"""Teacher and student through the shared loop, with the distillation objective."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.common.accuracy import Evaluation
from passes.common.device import prepare_torch
from passes.common.losses import (
    distillation_losses,
    hard_cross_entropy,
    probe_outputs,
    shared_heads,
)
from passes.common.outcome import summary_of
from passes.common.sampling import Weights
from passes.common.training import Objective, OnEvaluation, fit
from passes.distill.feedback import sampling_weights
from passes.distill.losses import FeatureMatcher, temperature_at
from passes.distill.step import DistillConfig, Features, Feedback, student_config


def distill(
    config: DistillConfig,
    parent: Artifact,
    teacher_artifact: Artifact,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Build the student, train it, save it into ``out``."""
    device = prepare_torch(context)
    model = read_description(parent.model)
    family = model.family
    architecture = student_config(config.student, family, model.config)
    teacher = load_module(teacher_artifact.model, context.device).requires_grad_(False)
    if config.student.parent is not None:
        student = load_module(model, context.device)
    else:
        student = family.build(architecture).to(device)
    copied = copy_matching(student, teacher) if config.student.slim is not None else 0
    train = context.data(config.train)
    validation = context.data(config.validation) if config.validation else None
    ours, theirs = probe_outputs(student, teacher, train)
    heads = family.require(TrainingHeads, architecture)
    soft = shared_heads(heads.logits(student, ours), heads.logits(teacher, theirs), context.note)
    matcher = (
        feature_matcher(
            config.features, family.require(FeatureTaps, architecture).names, ours, theirs
        )
        if config.features
        else None
    )
    result = fit(
        student,
        train,
        config.training,
        seed=context.seed,
        objective=objective(config, heads, student, teacher, train, soft, matcher),
        checkpoint_dir=context.work,
        extra=matcher,
        validation=validation,
        on_evaluation=feedback(config.feedback, config.training.steps, train, validation)
        if validation
        else None,
        progress=lambda done, total, figures: context.progress("step", done, total, figures),
        note=context.note,
    )
    family.save(student, architecture, out)
    return PassOutput(
        summary_of(result) | ({"copied_tensors": copied} if config.student.slim is not None else {})
    )


def objective(
    config: DistillConfig,
    heads_of: TrainingHeads,
    student: nn.Module,
    teacher: nn.Module,
    train: Dataset,
    soft: tuple[str, ...],
    matcher: FeatureMatcher | None,
) -> Objective:
    """For each head: w·(T²·soft cross-entropy) + (1 − w)·(hard cross-entropy); [+ weight·feature matching]."""
    weight, temperature = config.soft_weight, config.temperature

    def terms(
        outputs: dict[str, Tensor], batch: dict[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        heads = heads_of.logits(student, outputs)
        if weight == 0 and matcher is None:
            return hard_cross_entropy(heads, batch)
        with torch.no_grad():
            target = teacher(**{name: batch[name] for name in train.input_names})
            target_heads = heads_of.logits(teacher, target)
        at = temperature_at(
            fraction, temperature.start, temperature.end, temperature.schedule, temperature.steps
        )
        taught = {name: target_heads[name] for name in soft}
        losses = distillation_losses(heads, batch, taught, weight=weight, temperature=at)
        if matcher is not None and config.features is not None:
            losses["features"] = config.features.weight * matcher(outputs, target)
        return losses

    return terms


def feedback(
    config: Feedback | None, steps: int, train: Dataset, validation: Dataset
) -> OnEvaluation | None:
    """After ``start`` of the steps, each look at the validation split sets the sampling weights anew."""
    if config is None:
        return None
    train_strata, validation_strata = train.strata(), validation.strata()
    if not train_strata.keys() & validation_strata.keys():
        raise RequirementError(
            "feedback has nothing to weigh by: the training and validation sets share no strata",
            remedy="leave `feedback` out, or give both sets labels",
        )

    def after(step: int, evaluation: Evaluation) -> Weights | None:
        if step < config.start * steps or step >= steps:
            return None
        seen = len(evaluation.correct)
        return sampling_weights(
            train_strata,
            {axis: labels[:seen] for axis, labels in validation_strata.items()},
            evaluation.correct,
            strength=config.strength,
            limit=config.limit,
        )

    return after


def feature_matcher(
    features: Features,
    known: tuple[str, ...],
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
) -> FeatureMatcher:
    """Projections for the features that both models put out.

    Raises:
        RequirementError: a feature is not one of the family's, or teacher and student have another number of its vectors.
    """
    names = features.names or known
    if not names:
        raise RequirementError("the family has no features to match", remedy="leave `features` out")
    if unknown := [name for name in names if name not in known]:
        raise RequirementError(
            f"the family has no feature {', '.join(map(repr, unknown))}",
            remedy=f"known: {', '.join(known) or 'none'}",
        )
    if uneven := [name for name in names if student[name].shape[:-1] != teacher[name].shape[:-1]]:
        raise RequirementError(
            "; ".join(
                f"feature {name!r} is {list(student[name].shape)} in the student and {list(teacher[name].shape)} in the teacher"
                for name in uneven
            ),
            remedy="all but the last dimension must be the same; name other features",
        )
    widths = {name: (student[name].shape[-1], teacher[name].shape[-1]) for name in names}
    return FeatureMatcher(widths).to(student[names[0]].device)


def copy_matching(student: nn.Module, teacher: nn.Module) -> int:
    """Copy every tensor of the teacher whose name and shape the student has; returns how many."""
    theirs = teacher.state_dict()
    ours = student.state_dict()
    same = {
        name: theirs[name]
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape == tensor.shape
    }
    student.load_state_dict(ours | same)
    return len(same)
