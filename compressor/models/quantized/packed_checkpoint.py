"""A packed checkpoint, tensor by tensor, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.quantized.description import QUANTIZATION_CONFIG, is_packed
from compressor.models.quantized.packed_formats import FORMATS
from compressor.models.quantized.packed_linear import PackedLinear


def dequantized(
    folder: Path, tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a packed checkpoint by the name that the plain one has: float32 weights, all else as it is.

    Args:
        folder: the checkpoint's.
        tree: its config.json.
        prefix: what names of tensors begin with that are wanted.

    Raises:
        ModelError: as ``stored``.
    """
    for name, one in stored(folder, tree, prefix):
        yield (
            (f"{name}.weight", one.dequantized()) if isinstance(one, PackedLinear) else (name, one)
        )


def packed_layers(folder: Path) -> dict[str, PackedLinear]:
    """The packed layers of a model's folder by name; none where it holds a plain one.

    Raises:
        ModelError: as ``stored``.
    """
    tree = json.loads((folder / CONFIG).read_bytes())
    found = stored(folder, tree) if is_packed(tree) else ()
    return {name: one for name, one in found if isinstance(one, PackedLinear)}


def stored(
    folder: Path, tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Tensor | PackedLinear]]:
    """Every plain tensor of a packed checkpoint by its name, and every packed layer by the layer's; of those below ``prefix``.

    Raises:
        ModelError: tensors of a packed layer are missing, or they are packed in a way that is not read here.
    """
    config = tree[QUANTIZATION_CONFIG]
    if (method := config.get("quant_method")) not in FORMATS:
        raise ModelError(
            f"{folder}: its weights are quantized by {method!r}; {', '.join(FORMATS)} are read here"
        )
    kind = FORMATS[method]
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
                    raise ModelError(
                        f"{file}: {layer} has no {', '.join(sorted(missing))}",
                        remedy="copy it again",
                    )
                tensors = {suffix: opened.get_tensor(f"{layer}.{suffix}") for suffix in suffixes}
                yield layer, kind.linear(tensors, grid)
