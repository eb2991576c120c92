"""Tower of a vision-language class, for one image or tile at a time.

Shapes: W image embeddings of width H, and of H · (1 + D) with the features of D decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.families.transformers.images import GRIDS, PIXELS
from passes.export_onnx.images.single_image import (
    SingleImage,
    attention_modules,
    single_image,
)

DEEPSTACK = "deepstack_features"
"""Field of a tower's result with embeddings that are added behind the first decoder layers."""


class ImageTower(nn.Module):
    """``get_image_features`` of a class, for one image or tile, as a single array."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        """Wrap a class.

        Args:
            module: the class, in float32.
            names: its arrays of images, in the order of the graph's inputs.
        """
        super().__init__()
        self.module, self.names = module, tuple(names)
        self.image = SingleImage(attention_modules(module)) if GRIDS in names else None

    def forward(self, *arrays: Tensor) -> Tensor:
        """Return the embeddings [W, H · (1 + D)] of one image.

        Args:
            arrays: those of ``names``: patches [P, values] and their grid [1, 3], or the arrays of
                one tile.
        """
        by_name = dict(zip(self.names, arrays, strict=True))
        if self.image is None:
            return features(self.module, by_name)
        self.image.patches = by_name[PIXELS].shape[0]
        with single_image(self.module, self.image):
            return features(self.module, by_name)


def features(module: Any, arrays: Mapping[str, Tensor]) -> Tensor:
    """Return the image embeddings of a class, in the order of the prompt, [W, H · (1 + D)]."""
    result = module.get_image_features(**arrays, return_dict=True)
    parts = [_joined(getattr(result, "pooler_output", result))]
    parts += [_joined(layer) for layer in getattr(result, DEEPSTACK, None) or ()]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def _joined(embeddings: Any) -> Tensor:
    """Return the embeddings of several images as [W, H]."""
    rows = list(embeddings) if isinstance(embeddings, list | tuple) else [embeddings]
    flat = [row.reshape(-1, row.shape[-1]) for row in rows]
    return flat[0] if len(flat) == 1 else torch.cat(flat)
