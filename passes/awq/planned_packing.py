"""Packed layers of a streamed checkpoint as a plan knows them, without weights; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import Integers, ModelFacts
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.awq.config import AwqConfig
from passes.awq.linear_shapes import Shapes, fitted_grids


def packed_facts(
    config: AwqConfig, parent: ModelFacts, tree: dict[str, Any], layers: StreamedLayers
) -> ModelFacts:
    """Return the facts of the packed checkpoint, with the ``quantization_config`` of its layers.

    With `effective_bits` the grids of the layers are not known: the facts name the candidates.
    """
    scheme = PACKING_SCHEMES[config.format]
    if config.effective_bits is not None:
        unknown = {"quant_method": scheme.name}
        return replace(
            parent,
            config={**tree, QUANTIZATION_CONFIG: unknown},
            candidate_grids=config.grids,
            gguf_scales=config.gguf_scales,
            integers=None,
        )
    head = {} if layers.head_name is None else {layers.head_name: layers.head}
    names: dict[WeightGrid, list[str]] = {}
    plain = []
    parts: tuple[tuple[WeightGrid | None, Shapes], ...] = (
        (config.grids[0], layers.decoder),
        (config.vision, layers.towers),
        (config.lm_head, head),
    )
    for grid, shapes in parts:
        fitted = {} if grid is None else fitted_grids(config, grid, shapes, layers.one_grid)
        for name in shapes:
            fit = fitted[name].grid if name in fitted else None
            if fit is None:
                plain.append(name)
            else:
                names.setdefault(fit, []).append(name)
    order = {name: n for n, name in enumerate([*layers.towers, *layers.decoder, *head])}
    packing = scheme.config(names, sorted(plain, key=order.__getitem__))
    return replace(
        parent,
        config={**tree, QUANTIZATION_CONFIG: packing},
        gguf_scales=config.gguf_scales,
        integers=_integers(names),
    )


def _integers(grids: Iterable[WeightGrid]) -> Integers:
    """Return the integers that a graph of layers on these grids has."""
    signed: Mapping[int, Literal["int4", "int8"]] = {4: "int4", 8: "int8"}
    return frozenset(
        signed.get(grid.bits, "unsigned") if grid.symmetric else "unsigned" for grid in grids
    )
