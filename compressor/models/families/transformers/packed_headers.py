"""Headers of packed layers compared with the grids that config.json states; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compressor.errors import ModelError
from compressor.models.families.transformers.expected_tensors import Shapes
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES, PackingScheme
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid

PACKED_SUFFIXES = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_(packed|scale|zero_point|shape|g_idx))$"
)
"""Ends of the names of tensors that together hold one packed weight."""


def packed_layers(found: Shapes) -> dict[str, Shapes]:
    """Return the packed layers, each with the shapes of its tensors by suffix.

    Args:
        found: the shapes of all stored tensors, by the names that the class gives them.
    """
    layers: dict[str, Shapes] = {}
    for name, shape in found.items():
        if match := PACKED_SUFFIXES.search(name):
            layers.setdefault(name[: match.start()], {})[match.group(1)] = shape
    return layers


def packing_problems(
    tree: Mapping[str, Any], layers: Mapping[str, Shapes], expected: Shapes
) -> list[str]:
    """Return what does not fit in the packed layers of a checkpoint.

    Args:
        tree: config.json with a ``quantization_config`` of a supported method.
        layers: shapes of the stored tensors by layer and suffix (``packed_layers``).
        expected: shapes of the tensors of the float model.
    """
    if not layers:
        return [
            f"config.json has a `{QUANTIZATION_CONFIG}`, but no layer is packed; remove it from "
            "config.json if the weights are floats"
        ]
    config = tree[QUANTIZATION_CONFIG]
    scheme = PACKING_SCHEMES[config["quant_method"]]
    try:
        grid_of = scheme.grids(config)
        return [
            problem
            for layer, found in layers.items()
            if len(shape := expected.get(f"{layer}.weight", ())) == 2
            for problem in _layer_problems(scheme, grid_of(layer), (layer, found), shape)
        ]
    except ModelError as error:
        return [error.what if error.remedy is None else f"{error.what}; {error.remedy}"]


def _layer_problems(
    scheme: PackingScheme,
    grid: WeightGrid,
    layer: tuple[str, Shapes],
    weight_shape: tuple[int, ...],
) -> Iterator[str]:
    """Yield a line for each tensor of a layer that is missing, unexpected or misshapen."""
    name, found = layer
    outputs, inputs = weight_shape
    if reasons := scheme.problems(grid, outputs, inputs):
        yield f"{name}: {'; '.join(reasons)}"
        return
    expected = scheme.shapes(grid, outputs, inputs)
    yield from (f"missing: {name}.{suffix}" for suffix in expected if suffix not in found)
    for suffix, shape in found.items():
        if suffix not in expected and suffix not in scheme.suffixes:
            yield f"unexpected: {name}.{suffix}"
        elif suffix in expected and shape != expected[suffix]:
            yield (
                f"{name}.{suffix}: {list(shape)} in the file, {list(expected[suffix])} for "
                f"{grid.bits} bits in groups of {grid.width(inputs)}"
            )
