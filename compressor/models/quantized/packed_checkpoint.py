"""Packed checkpoints, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.quantized.packed_formats import PACKED_FORMATS, PackedFormat
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid, is_packed


def read_dequantized(
    folder: Path, tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by the name that it has in a float checkpoint.

    Args:
        folder: the checkpoint.
        tree: its config.json.
        prefix: yield only tensors whose names start with it.

    Yields:
        Packed weights as float32; other tensors as they are stored.

    Raises:
        ModelError: tensors of a packed layer are missing, or the packing is not supported.
    """
    for name, value in _read_stored(folder, tree, prefix):
        if isinstance(value, PackedLinear):
            yield f"{name}.weight", value.dequantize()
        else:
            yield name, value


def read_packed_layers(folder: Path) -> dict[str, PackedLinear]:
    """Return the packed layers of a model folder by name; none for a float model.

    Raises:
        ModelError: as ``read_dequantized``.
    """
    tree = json.loads((folder / CONFIG).read_bytes())
    stored = _read_stored(folder, tree, "") if is_packed(tree) else ()
    return {name: value for name, value in stored if isinstance(value, PackedLinear)}


def _read_stored(
    folder: Path, tree: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Tensor | PackedLinear]]:
    """Yield float tensors by their name, and packed layers by the name of the layer."""
    config = tree[QUANTIZATION_CONFIG]
    if (method := config.get("quant_method")) not in PACKED_FORMATS:
        raise ModelError(
            f"{folder}: its weights are quantized by {method!r}; "
            f"supported: {', '.join(PACKED_FORMATS)}"
        )
    format_ = PACKED_FORMATS[method]
    grid_of = format_.grids(config)
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as tensors:
            stored_names = tensors.keys()
            layers: dict[str, set[str]] = {}
            for name in sorted(name for name in stored_names if name.startswith(prefix)):
                layer, _, suffix = name.rpartition(".")
                if suffix in format_.suffixes:
                    layers.setdefault(layer, set()).add(suffix)
                else:
                    yield name, tensors.get_tensor(name)
            for layer, suffixes in layers.items():
                grid = grid_of(layer)
                _check_suffixes(format_, grid, suffixes, f"{file}: {layer}")
                values = {suffix: tensors.get_tensor(f"{layer}.{suffix}") for suffix in suffixes}
                yield layer, format_.linear(values, grid)


def _check_suffixes(
    format_: PackedFormat, grid: WeightGrid, suffixes: set[str], place: str
) -> None:
    required = set(format_.suffixes) - ({"weight_zero_point"} if grid.symmetric else set())
    if missing := required - suffixes:
        raise ModelError(f"{place} has no {', '.join(sorted(missing))}", remedy="copy it again")
