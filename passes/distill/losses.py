"""Distillation loss: soft labels with an annealed temperature, and matching of features.

Shapes: B batch, D width, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import RequirementError
from compressor.models.capabilities.training_heads import TrainingHeads
from passes.common.losses import distillation_losses, hard_cross_entropy
from passes.distill.config import DistillConfig, TemperatureSchedule


def temperature_at(
    fraction: float, start: float, end: float, schedule: TemperatureSchedule, steps: int
) -> float:
    """Return the temperature after ``fraction`` (0 to 1) of the training.

    Args:
        fraction: Values outside 0 to 1 are clamped.
        start: Temperature at 0.
        end: Temperature at 1.
        schedule: Interpolation between them.
        steps: Number of equal plateaus of the schedule ``steps``.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if schedule == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    elif schedule == "steps":
        fraction = min(math.floor(fraction * steps), steps - 1) / max(steps - 1, 1)
    return start + (end - start) * fraction


class FeatureMatcher(nn.Module):
    """Cosine distance between projected student features and teacher features.

    Linear projections as in FitNets (Romero et al. 2015). Features are [B, D] or [B, T, D];
    vectors that are all zero in the teacher (padding) do not count.
    """

    def __init__(self, widths: dict[str, tuple[int, int]]) -> None:
        """Create a projection for each feature, from its width in the student to the teacher's."""
        super().__init__()
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(student, teacher, bias=False)
                for name, (student, teacher) in widths.items()
            }
        )

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return the mean over the features of 1 − cos(projected student, teacher), a scalar."""
        losses = []
        for name, projection in self.projections.items():
            target = teacher[name]
            counts = (target != 0).any(dim=-1).to(target.dtype)
            distance = 1 - functional.cosine_similarity(projection(student[name]), target, dim=-1)
            losses.append((distance * counts).sum() / counts.sum().clamp(min=1.0))
        return torch.stack(losses).mean()


def create_matcher(
    names: tuple[str, ...], student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> FeatureMatcher:
    """Return projections for features, with widths from outputs of student and teacher.

    Raises:
        RequirementError: A feature has another number of vectors in the student; all are named.
    """
    uneven = [name for name in names if student[name].shape[:-1] != teacher[name].shape[:-1]]
    if uneven:
        raise RequirementError(
            "; ".join(
                f"`features`: {name!r} is {list(student[name].shape)} in the student "
                f"and {list(teacher[name].shape)} in the teacher"
                for name in uneven
            ),
            remedy="all dimensions but the last must be equal; name other features",
        )
    widths = {name: (student[name].shape[-1], teacher[name].shape[-1]) for name in names}
    return FeatureMatcher(widths).to(student[names[0]].device)


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    """Loss of the student: hard labels, soft labels, and features if there is a matcher.

    For each head: w · T² · soft cross-entropy + (1 − w) · hard cross-entropy (Hinton et al. 2015).
    """

    config: DistillConfig
    heads: TrainingHeads
    student: nn.Module
    teacher: nn.Module
    input_names: tuple[str, ...]
    """Inputs of the models, by their names in a batch."""
    shared: tuple[str, ...]
    """Heads that get soft labels."""
    matcher: FeatureMatcher | None

    def __call__(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        """Return the terms of the loss after ``fraction`` of the training, a scalar each."""
        config = self.config
        heads = self.heads.logits(self.student, outputs)
        if not config.uses_teacher:
            return hard_cross_entropy(heads, batch)
        with torch.no_grad():
            target = self.teacher(**{name: batch[name] for name in self.input_names})
            logits = self.heads.logits(self.teacher, target)
        annealing = config.temperature
        losses = distillation_losses(
            heads,
            batch,
            {name: logits[name] for name in self.shared},
            weight=config.soft_weight,
            temperature=temperature_at(
                fraction, annealing.start, annealing.end, annealing.schedule, annealing.steps
            ),
        )
        if self.matcher is not None and config.features is not None:
            losses["features"] = config.features.weight * self.matcher(outputs, target)
        return losses
