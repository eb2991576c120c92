"""Linear layers of a module: lookup, and selection of those that are quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Block, Site
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import AwqConfig
from passes.awq.linear_shapes import MIN_WEIGHTS

_NONE: Mapping[str, str] = MappingProxyType({})
_NO_GRIDS: Mapping[str, WeightGrid] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Selection:
    """Linear layers of a module, divided into those that are quantized and those that are not."""

    blocks: tuple[Block, ...]
    """Blocks with the quantized linear layers alone."""
    kept_float: dict[str, str]
    """Name of each other linear layer, and the reason."""

    @property
    def names(self) -> list[str]:
        """Names of the quantized linear layers."""
        return [
            block.full(name)
            for block in self.blocks
            for site in block.sites
            for name in site.linears
        ]


def find_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a module by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def other_matrices(module: nn.Module) -> dict[str, str]:
    """Return the modules that are no linear layers but hold a matrix, with the reason."""
    return {
        name: f"packed formats hold torch.nn.Linear alone, and this is {type(layer).__name__}"
        for name, layer in module.named_modules()
        if not isinstance(layer, nn.Linear | nn.Embedding)
        and isinstance(weight := getattr(layer, "weight", None), Tensor)
        and weight.ndim == 2
    }


def get_linear(layer: nn.Module, name: str) -> nn.Linear:
    """Return the linear layer of a name in ``layer``."""
    return cast("nn.Linear", layer.get_submodule(name))


def concatenate_weights(layer: nn.Module, site: Site) -> Tensor:
    """Return the weights of all linear layers of a site, [I, O]."""
    return torch.cat([get_linear(layer, name).weight for name in site.linears]).T.contiguous()


def select_layers(
    blocks: Sequence[Block],
    module: nn.Module,
    config: AwqConfig,
    kept: Mapping[str, str] = _NONE,
    grids: Mapping[str, WeightGrid] = _NO_GRIDS,
) -> Selection:
    """Select the layers of ``module`` that fit their grid and the config's format.

    Args:
        blocks: the family's blocks; if empty, each linear layer is a site of its own.
        module: the module with its weights.
        config: with `effective_bits`, layers must fit all candidate grids.
        kept: linear layers that stay in float whatever their size, with reasons.
        grids: grids of linear layers that do not have the config's.
    """
    checkpoint_format = PACKED_FORMATS[config.format]
    linears = find_linears(module)
    blocks = blocks or [Block("", tuple(Site(name, (name,)) for name in linears))]
    in_blocks = {
        block.full(name) for block in blocks for site in block.sites for name in site.linears
    }
    users = Counter(
        id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)
    )
    kept_float: dict[str, str] = {}
    for name, layer in linears.items():
        candidates = [grids[name]] if name in grids else config.grids
        shape = layer.out_features, layer.in_features
        problems = (checkpoint_format.problems(grid, *shape) for grid in candidates)
        reasons = list(dict.fromkeys(reason for found in problems for reason in found))
        if name in kept:
            reasons = [kept[name]]
        elif name not in in_blocks:
            reasons = ["no sample calls it as a linear layer"]
        elif users[id(layer.weight)] > 1:
            reasons = ["another module has the same weight"]
        elif layer.weight.numel() < MIN_WEIGHTS:
            reasons.append(f"{layer.weight.numel()} weights are too few to win anything")
        if reasons:
            kept_float[name] = "; ".join(reasons)
    selected = [Block(block.name, tuple(_select_sites(block, kept_float))) for block in blocks]
    return Selection(tuple(block for block in selected if block.sites), kept_float)


def _select_sites(block: Block, kept_float: dict[str, str]) -> Iterator[Site]:
    """Yield the sites of a block with their quantized layers alone.

    The weights of the other layers that read the same input are multiplied by its scales.
    """
    for site in block.sites:
        quantized = tuple(name for name in site.linears if block.full(name) not in kept_float)
        if not quantized:
            continue
        source = site.source
        if source is not None:
            readers = [(name, 0) for name in site.linears if name not in quantized]
            source = replace(source, other_readers=(*source.other_readers, *readers))
        yield replace(site, linears=quantized, source=source)
