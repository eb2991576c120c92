"""The model that `align` trains in benchmarks/align_icons: two locked towers, a head on each.

The towers do not change, so their outputs are computed once: vectors of images are the input, and
those of texts a table. N samples, W, T and E widths.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

NAMES = Path(__file__).with_name("names.npy")
IMAGE_WIDTH = 1280


class Heads(nn.Module):
    """Projections of EfficientNet-Lite0's and MiniLM's vectors to one space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        names = torch.from_numpy(np.load(NAMES))
        self.text_model = nn.Embedding.from_pretrained(names)
        self.image_head = nn.Sequential(
            nn.LayerNorm(IMAGE_WIDTH), nn.Dropout(0.2), nn.Linear(IMAGE_WIDTH, width)
        )
        self.text_head = nn.Linear(names.shape[1], width)

    def forward(self, image_vector: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors [N, W] and numbers of names [N, 1] to embeddings [N, E] of length 1."""
        image = self.image_head(image_vector)
        text = self.text_head(self.text_model(input_ids[:, 0]))
        return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


def build(width: int = 256) -> nn.Module:
    return Heads(width)
