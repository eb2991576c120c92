"""The temperature and the matching of features: tensors in, tensors out.

Shapes: B batch, D width, T tokens.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Schedule = Literal["linear", "cosine", "steps"]


def temperature_at(
    fraction: float, start: float, end: float, schedule: Schedule, steps: int
) -> float:
    """The temperature after ``fraction`` (0 to 1) of training; ``steps`` equal plateaus for that schedule."""
    fraction = min(max(fraction, 0.0), 1.0)
    if schedule == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    elif schedule == "steps":
        fraction = min(math.floor(fraction * steps), steps - 1) / max(steps - 1, 1)
    return start + (end - start) * fraction


class FeatureMatcher(nn.Module):
    """Linear projections of student features onto the teacher's (FitNets, Romero et al. 2015), compared by cosine.

    Features are [B, D] or [B, T, D]; vectors that are zero in the teacher (padding) do not count. The projections are
    trained with the student and thrown away.
    """

    def __init__(self, widths: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(student, teacher, bias=False)
                for name, (student, teacher) in widths.items()
            }
        )

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Mean over the features of 1 − cos(projected student, teacher); a scalar."""
        losses = []
        for name, projection in self.projections.items():
            there = (teacher[name] != 0).any(dim=-1).to(teacher[name].dtype)
            distance = 1 - functional.cosine_similarity(
                projection(student[name]), teacher[name], dim=-1
            )
            losses.append((distance * there).sum() / there.sum().clamp(min=1.0))
        return torch.stack(losses).mean()
