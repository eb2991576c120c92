"""Towers of classes that read sizes of images as numbers: traced for images of one size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.export_onnx.images.tower import ImageTower, features

Unit = tuple[Tensor, ...]
"""The arrays of one image, in the order of a tower's names."""


class FixedTower(nn.Module):
    """``get_image_features`` of a class, with the values of its arrays of integers as constants.

    Attributes:
        names: the other arrays, which are the inputs of the graph.
        fixed: the constants by name, as nested lists.
    """

    def __init__(self, tower: ImageTower, unit: Unit) -> None:
        """Take the constants from the arrays of an image."""
        super().__init__()
        self.module = tower.module
        arrays = dict(zip(tower.names, unit, strict=True))
        self.fixed = fixed_values(arrays)
        self.names = tuple(name for name in arrays if name not in self.fixed)

    def forward(self, *arrays: Tensor) -> Tensor:
        """Return the embeddings of one image; see ``ImageTower.forward``."""
        by_name: dict[str, Any] = dict(zip(self.names, arrays, strict=True))
        return features(self.module, by_name | self.fixed)


def fixed_values(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arrays of integers among the arrays of an image, as nested lists."""
    return {name: value.tolist() for name, value in arrays.items() if value.dtype == torch.int64}


def most_frequent(units: Iterable[Unit], names: tuple[str, ...]) -> Unit:
    """Return an image with the most frequent arrays of integers; the first of several."""
    found = list(units)
    keys = [json.dumps(fixed_values(dict(zip(names, unit, strict=True)))) for unit in found]
    [(key, _)] = Counter(keys).most_common(1)
    return found[keys.index(key)]
