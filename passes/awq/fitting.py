"""Which linear layers of a model that is in memory whole can be packed, and why others stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compressor.artifacts.store import Artifact
from compressor.config.discovery import FAMILIES, load
from compressor.errors import RequirementError
from compressor.models.capabilities.linear_groups import Block, LinearGroups, Site
from compressor.models.checkpoint.loading import load_module, read_description
from compressor.models.contract import Family
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_formats import FORMATS, Format
from passes.awq.step import AwqConfig

_LEAST_WEIGHTS = 1024
"""Of fewer, what a file says of four tensors instead of one takes most of what is won."""
_GROUPS = (128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Fitting:
    """What of a model is packed."""

    blocks: tuple[Block, ...]
    """With the linear layers alone that are packed."""
    kept_float: dict[str, str]
    """All others by name, and why."""


def check_family(config: AwqConfig, parent: Artifact) -> None:
    """Whether a model of a family of ours can be packed so.

    Raises:
        RequirementError: not so: all that stands against it.
    """
    name, described = read_description(parent.model)
    family: Family[Any] = load(FAMILIES, name)
    problems, remedies = [], []
    if unfit := [
        field
        for field in ("effective_bits", "vision", "head")
        if getattr(config, field) is not None
    ]:
        problems.append(f"`{'`, `'.join(unfit)}`: for checkpoints of transformers")
        remedies.append("leave it out")
    if config.format != "compressed-tensors":
        problems.append("AutoAWQ's format is that of language models of transformers")
        remedies.append("set `format: compressed-tensors`")
    groups = family.capability(LinearGroups, described)
    blocks = () if groups is None else groups.blocks
    if not blocks and not config.is_nearest:
        problems.append(
            "the family does not state which of its linear layers read the same input, and what before them takes up a scale"
        )
        remedies.append(
            "have it return them from `linear_blocks`, as compressor/models/autoglm_phone/linears.py does; or round to the "
            "nearest: `refine: none`, `scaling: false`, `drift: 0`"
        )
    if not problems:
        module, grid = load_module(parent.model), config.grids[0]
        found = fitting(blocks, module, FORMATS[config.format], grid)
        if not found.blocks:
            problems = [f"{layer}: {why}" for layer, why in found.kept_float.items()] or [
                "it has no linear layers"
            ]
            fits = [
                size
                for size in _GROUPS
                if any(one.in_features % size == 0 for one in linears_of(module).values())
            ]
            remedies.append(
                f"group sizes that fit some: {', '.join(map(str, fits)) or 'none'}, or -1"
            )
    if problems:
        raise RequirementError(
            f"no linear layer of this model of the family {name} can be packed so:\n"
            + "\n".join(f"    {one}" for one in problems),
            remedy="; ".join(remedies),
        )


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """By name."""
    return {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}


def fitting(blocks: Sequence[Block], module: nn.Module, kind: Format, grid: WeightGrid) -> Fitting:
    """What of ``module`` is packed on ``grid``; without blocks each linear layer stands for itself."""
    linears = linears_of(module)
    blocks = blocks or [Block("", tuple(Site(name, (name,)) for name in linears))]
    named = {block.full(name) for block in blocks for site in block.sites for name in site.linears}
    users = Counter(id(one) for _, one in module.named_parameters(remove_duplicate=False))
    kept: dict[str, str] = {}
    for name, one in linears.items():
        why = kind.problems(grid, one.out_features, one.in_features)
        if name not in named:
            why = ["the family's table does not name it"]
        elif users[id(one.weight)] > 1:
            why = ["another module has the same weight"]
        elif one.weight.numel() < _LEAST_WEIGHTS:
            why.append(f"{one.weight.numel()} weights are too few to win anything")
        if why:
            kept[name] = "; ".join(why)
    found = [Block(block.name, tuple(_without(block, kept))) for block in blocks]
    return Fitting(tuple(block for block in found if block.sites), kept)


def _without(block: Block, kept: dict[str, str]) -> Iterator[Site]:
    """The sites of a block with the layers alone that are packed; others that read the same input still take up its scales."""
    for site in block.sites:
        packed = tuple(name for name in site.linears if block.full(name) not in kept)
        if not packed:
            continue
        source = site.source
        if source is not None:
            others = [(name, 0) for name in site.linears if name not in packed]
            source = replace(source, others=(*source.others, *others))
        yield replace(site, linears=packed, source=source)
