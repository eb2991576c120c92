"""The distillation losses: tensors in, tensors out.

Shapes: B batch, C classes, D width, T tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Schedule = Literal["linear", "cosine", "steps"]


def temperature_at(fraction: float, start: float, end: float, schedule: Schedule, steps: int) -> float:
    """The temperature after ``fraction`` (0 to 1) of training; ``steps`` equal plateaus for that schedule."""
    fraction = min(max(fraction, 0.0), 1.0)
    if schedule == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    elif schedule == "steps":
        fraction = min(math.floor(fraction * steps), steps - 1) / max(steps - 1, 1)
    return start + (end - start) * fraction


def soft_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T² · mean over the batch of −Σ p_teacher · log p_student, both softened by T (Hinton et al. 2015, section 2)."""
    target_BC = torch.softmax(teacher_BC / temperature, dim=-1)
    log_BC = torch.log_softmax(student_BC / temperature, dim=-1)
    return -(temperature**2) * (target_BC * log_BC).sum(dim=-1).mean()


class FeatureMatcher(nn.Module):
    """Linear projections of student features onto the teacher's (FitNets, Romero et al. 2015), compared by cosine.

    Features are [B, D] or [B, T, D]; the projections are trained with the student and thrown away.
    """

    def __init__(self, widths: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {name: nn.Linear(student, teacher, bias=False) for name, (student, teacher) in widths.items()}
        )

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Mean over the features of 1 − cos(projected student, teacher); a scalar."""
        losses = [
            1 - functional.cosine_similarity(projection(student[name]), teacher[name], dim=-1).mean()
            for name, projection in self.projections.items()
        ]
        return torch.stack(losses).mean()
