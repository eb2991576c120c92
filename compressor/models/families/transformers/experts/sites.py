"""Sites of split experts, from those that were found for the first expert of each module."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from compressor.models.capabilities.linear_groups import Routing, Site
from compressor.models.families.transformers.experts.split import (
    SplitExperts,
    every_token_reaches,
    named_experts,
)


def sites_of_experts(
    layer: nn.Module, discover: Callable[[], tuple[Site, ...]]
) -> tuple[Site, ...]:
    """Return the sites of a layer with those of all of its experts.

    All experts of a module compute the same with other weights: the sites of the first are found,
    and the others are named after them. Of each module, the sites of a stage follow each other, so
    that the inputs of all experts can be recorded in one run.

    Args:
        layer: a layer with split experts, or without experts.
        discover: returns the sites that a batch passes.
    """
    with every_token_reaches(layer, 1):
        sites = discover()
    for prefix, experts in named_experts(layer):
        sites = _with_all_experts(sites, prefix, experts)
    return sites


def router_names(layer: nn.Module) -> set[str]:
    """Return the linear layers that choose experts, or weigh them.

    They are the layers beside the experts with an output for each expert, or with a single one.
    Runtimes of packed checkpoints read them as floats.
    """
    names = set()
    for prefix, experts in named_experts(layer):
        parent_name = prefix.removesuffix(".").rpartition(".")[0]
        start = f"{parent_name}." if parent_name else ""
        parent = layer.get_submodule(parent_name)
        names |= {
            f"{start}{name}"
            for name, child in parent.named_modules()
            if isinstance(child, nn.Linear)
            and child.out_features in {1, experts.expert_layout.experts}
            and not f"{start}{name}".startswith(prefix)
        }
    return names


def _with_all_experts(
    sites: tuple[Site, ...], prefix: str, experts: SplitExperts
) -> tuple[Site, ...]:
    first = f"{prefix}0."
    stages = [site for site in sites if site.linears[0].startswith(first)]
    if not stages:
        return sites
    routed = [
        _of_expert(site, prefix, Routing(prefix.removesuffix("."), number, stage))
        for stage, site in enumerate(stages)
        for number in range(experts.expert_layout.experts)
    ]
    position = sites.index(stages[0])
    return (*sites[:position], *routed, *(s for s in sites[position:] if s not in stages))


def _of_expert(site: Site, prefix: str, routing: Routing) -> Site:
    """Return the site of another expert than the first; sites of experts complete no module."""

    def rename(name: str) -> str:
        return re.sub(f"^{re.escape(prefix)}0\\.", f"{prefix}{routing.expert}.", name)

    source = site.source
    if source is not None:
        readers = tuple((rename(name), first) for name, first in source.other_readers)
        source = replace(source, module=rename(source.module), other_readers=readers)
        if not source.module.startswith(prefix):
            source = None  # shared by all experts and their router
    return replace(
        site,
        name=rename(site.name),
        linears=tuple(rename(name) for name in site.linears),
        source=source,
        block=None,
        stream=None,
        with_weights=False,
        routing=routing,
    )
