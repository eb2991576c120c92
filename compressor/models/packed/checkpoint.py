"""A packed checkpoint, tensor by tensor, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.packed.description import QUANTIZATION_CONFIG
from compressor.models.packed.formats import FORMATS


def dequantized(folder: Path, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a packed checkpoint by the name that the plain one has: float32 weights, all else as it is.

    Args:
        folder: the checkpoint's.
        tree: its config.json.
        prefix: what names of tensors begin with that are wanted.

    Raises:
        ModelError: tensors of a packed layer are missing.
    """
    config = tree[QUANTIZATION_CONFIG]
    kind = FORMATS[config["quant_method"]]
    grid_of = kind.grids(config)
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as opened:
            names = {name for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118  it is no mapping
            layers: dict[str, set[str]] = {}
            for name in sorted(names):
                layer, _, suffix = name.rpartition(".")
                if suffix in kind.suffixes:
                    layers.setdefault(layer, set()).add(suffix)
                else:
                    yield name, opened.get_tensor(name)
            for layer, suffixes in layers.items():
                grid = grid_of(layer)
                needed = set(kind.suffixes) - ({"weight_zero_point"} if grid.symmetric else set())
                if missing := needed - suffixes:
                    raise ModelError(f"{file}: {layer} has no {', '.join(sorted(missing))}", remedy="copy it again")
                tensors = {suffix: opened.get_tensor(f"{layer}.{suffix}") for suffix in suffixes}
                yield f"{layer}.weight", kind.linear(tensors, grid).dequantized()
