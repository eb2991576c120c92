"""Tables of embeddings as integers: stored so, looked up so, and multiplied by one scale for each column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from torch import nn

from compressor.models.quantized.fake_quantization import IntegerEmbedding, replace
from compressor.models.quantized.quantization import Grid
from passes.qat.scales import weight_scales


def tables_of(module: nn.Module) -> tuple[str, ...]:
    """The embeddings of a module whose weights nothing else uses."""
    uses = Counter(
        id(one) for holder in module.modules() for one in holder.parameters(recurse=False)
    )
    return tuple(
        name
        for name, one in module.named_modules()
        if isinstance(one, nn.Embedding) and uses[id(one.weight)] == 1
    )


def round_tables(module: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Put tables on their grids, in place. No value is clipped: a rare row is looked up as itself, not as part of a sum."""
    for name, grid in grids.items():
        one = IntegerEmbedding(cast("nn.Embedding", module.get_submodule(name)), grid)
        one.weight_grid.set_scale(weight_scales(one.layer.weight.T, grid, "min-max"))
        replace(module, name, one.to(one.layer.weight.device))
