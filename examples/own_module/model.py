"""A residual network as its author wrote it: nothing here knows about autoglm-compress."""

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.project = nn.Sequential(
            nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.project(self.expand(x)))


class ShapeNet(nn.Module):
    """Classify drawings of shapes; returns logits, and the vector before them."""

    def __init__(self, width: int = 16, depth: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vector = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(vector), vector


def build(width: int = 16, depth: int = 3) -> nn.Module:
    return ShapeNet(width, depth)
