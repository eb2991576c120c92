"""Packed layers of a transformers checkpoint as a plan knows them, from config.json; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from compressor.models.facts import Integers, ModelFacts
from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.layouts import LM_HEAD, decoder_shape
from compressor.models.families.transformers.linear_groups import decoder_blocks
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.awq.config import AwqConfig

_TABLES = "embeddings."
"""Part of the vision tower with matrices that are no linear layers."""


def packed_facts(config: AwqConfig, parent: ModelFacts, tree: dict[str, Any]) -> ModelFacts:
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
            integers=None,
        )
    names: dict[WeightGrid, list[str]] = {}
    for grid, layers in (
        (config.grids[0], _decoder_linears(tree)),
        (config.vision, list(vision_linear_shapes(tree))),
        (config.lm_head, [LM_HEAD]),
    ):
        if grid is not None:
            names.setdefault(grid, []).extend(layers)
    packed = {name for layers in names.values() for name in layers}
    linears = [*vision_linear_shapes(tree), *_decoder_linears(tree), LM_HEAD]
    plain = [name for name in linears if name not in packed]
    packing = scheme.config(names, plain)
    return replace(parent, config={**tree, QUANTIZATION_CONFIG: packing}, integers=_integers(names))


def _integers(grids: Iterable[WeightGrid]) -> Integers:
    """Return the integers that a graph of layers on these grids has."""
    signed: Mapping[int, Literal["int4", "int8"]] = {4: "int4", 8: "int8"}
    return frozenset(
        signed.get(grid.bits, "unsigned") if grid.symmetric else "unsigned" for grid in grids
    )


def vision_linear_shapes(tree: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of the linear layers of the vision tower; none without one."""
    vision = decoder_shape(tree).layout.vision
    if vision is None:
        return {}
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(tree).items()
        if name.startswith(f"{vision}.") and not name.startswith(f"{vision}.{_TABLES}")
    }
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def _decoder_linears(tree: dict[str, Any]) -> list[str]:
    return [
        block.full(name)
        for block in decoder_blocks(tree)
        for site in block.sites
        for name in site.linears
    ]
