"""Distillation loss: soft labels with an annealed temperature, and matching of features.

Shapes: B batch, D width, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import RequirementError
from compressor.models.capabilities.training_heads import TrainingHeads
from passes.common.losses import distillation_losses, hard_cross_entropy
from passes.distill.config import DistillConfig, TemperatureSchedule
from passes.distill.module_taps import ModuleOutputs, ModulePair, pair_modules


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
                _key(name): nn.Linear(student, teacher, bias=False)
                for name, (student, teacher) in widths.items()
            }
        )
        self.names = tuple(widths)

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return the mean over the features of 1 − cos(projected student, teacher), a scalar."""
        losses = []
        for name in self.names:
            target, projection = teacher[name], self.projections[_key(name)]
            counts = (target != 0).any(dim=-1).to(target.dtype)
            distance = 1 - functional.cosine_similarity(projection(student[name]), target, dim=-1)
            losses.append((distance * counts).sum() / counts.sum().clamp(min=1.0))
        return torch.stack(losses).mean()


def _key(name: str) -> str:
    """Return the name of a projection, which may hold no dot as paths of modules do."""
    return name.replace(".", "/")


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
class Matching:
    """Features of student and teacher: outputs with names, and outputs of modules."""

    names: tuple[str, ...]
    pairs: tuple[ModulePair, ...]
    student: ModuleOutputs
    teacher: ModuleOutputs
    matcher: FeatureMatcher

    @classmethod
    def create(
        cls,
        names: tuple[str, ...],
        modules: Mapping[str, str],
        outputs: tuple[dict[str, Tensor], dict[str, Tensor]],
        recorded: tuple[ModuleOutputs, ModuleOutputs],
    ) -> Matching:
        """Return the features with projections between their widths.

        Args:
            names: outputs of both models.
            modules: path in the student to path in the teacher.
            outputs: outputs of student and teacher for the same samples.
            recorded: outputs of their modules for these samples.

        Raises:
            RequirementError: features do not fit; all are named.
        """
        pairs = tuple(pair_modules(modules, *recorded))
        first, second = (_features(names, pairs, *both) for both in _sides(outputs, recorded))
        return cls(names, pairs, *recorded, create_matcher(tuple(first), first, second))

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return the mean distance of the features of the last calls, a scalar."""
        sides = _sides((student, teacher), (self.student, self.teacher))
        features = [_features(self.names, self.pairs, *both) for both in sides]
        distance: Tensor = self.matcher(*features)
        return distance


def _sides(
    outputs: tuple[dict[str, Tensor], dict[str, Tensor]],
    recorded: tuple[ModuleOutputs, ModuleOutputs],
) -> Iterator[tuple[dict[str, Tensor], ModuleOutputs, str]]:
    yield outputs[0], recorded[0], "student"
    yield outputs[1], recorded[1], "teacher"


def _features(
    names: tuple[str, ...],
    pairs: tuple[ModulePair, ...],
    outputs: dict[str, Tensor],
    recorded: ModuleOutputs,
    role: str,
) -> dict[str, Tensor]:
    """Return the features [..., D] of a model by name; modules by their path in the student."""
    features = {name: outputs[name] for name in names}
    for pair in pairs:
        of_student = role == "student"
        features[f"module {pair.student}"] = pair.features(recorded, of_student=of_student)
    return features


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
    matcher: Matching | None

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
            losses["features"] = config.features.weight * self.matcher.distance(outputs, target)
        return losses
