"""Sites of decoder layers: stated by a table or discovered, verified, and with grids that fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.discovered_groups import (
    KnownSites,
    discover_sites,
    keep_verified_sources,
)
from compressor.models.capabilities.linear_groups import LinearGroups, Site
from compressor.models.families.transformers.experts.sites import router_names, sites_of_experts
from compressor.models.families.transformers.layer_recording import LayerArguments
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.float_reference import RunBatch
from passes.awq.linear_layers import find_linears
from passes.awq.linear_shapes import FittedGrid


@dataclass(frozen=True, slots=True)
class GriddedSite:
    """A site with the grids that its linear layers can have."""

    site: Site
    grids: Mapping[WeightGrid, WeightGrid]
    """Grid of the config to the one that fits: the same, or one with smaller groups."""


class LayerSites:
    """Finds the sites of decoder layers, one loaded layer after another."""

    def __init__(
        self,
        grids: Mapping[WeightGrid, Mapping[str, FittedGrid]],
        stated: LinearGroups | None,
        note: Callable[[str], None],
    ) -> None:
        """Take what the family states.

        Args:
            grids: grid of the config to the grid of each linear layer.
            stated: the family's blocks; None to discover them.
            note: called with a line for what differs from the config.
        """
        self._note = note
        self._grids = grids
        self._stated = None if stated is None else {b.name: b.sites for b in stated.blocks}
        self._known: KnownSites = {}
        self.kept_float: dict[str, str] = {}
        """Linear layers that stay in float, with the reason."""
        self.changed_grids: dict[str, str] = {}
        """Linear layers with smaller groups than the config's, with the reason."""

    def find(self, name: str, layer: nn.Module, run: RunBatch) -> list[GriddedSite]:
        """Return the sites of a decoder layer in the order of computation.

        Args:
            name: name of the layer in the model.
            layer: the layer with its float weights.
            run: runs a batch through it.
        """
        if self._stated is None:
            discover = partial(discover_sites, layer, run, self._known)
            sites = sites_of_experts(layer, discover)
        else:
            sites = keep_verified_sources(layer, run, self._stated[name])
            for before, after in zip(self._stated[name], sites, strict=True):
                if before.source != after.source:
                    self._note(f"{name}: {before.name} is not scaled: it would change the output")
        routers = router_names(layer)
        linears = find_linears(layer)
        called = {linear for site in sites for linear in site.linears}
        for linear in linears.keys() - called:
            self.kept_float[f"{name}.{linear}"] = "the layer does not call it as a linear layer"
        return [found for site in sites if (found := self._with_grids(name, site, routers))]

    def _with_grids(self, name: str, site: Site, routers: Collection[str]) -> GriddedSite | None:
        """Return a site with those of its linear layers that fit every grid; None without any."""
        fitted = {
            grid: {linear: grids[f"{name}.{linear}"] for linear in site.linears}
            for grid, grids in self._grids.items()
        }
        reasons = {
            linear: fit.reason
            for fits in fitted.values()
            for linear, fit in fits.items()
            if fit.grid is None
        }
        reasons |= {linear: "it chooses experts" for linear in site.linears if linear in routers}
        self.kept_float |= {f"{name}.{k}": str(reason) for k, reason in reasons.items()}
        linears = tuple(linear for linear in site.linears if linear not in reasons)
        if not linears:
            return None
        source = site.source
        if source is not None and reasons:
            readers = [(linear, 0) for linear in site.linears if linear in reasons]
            source = replace(source, other_readers=(*source.other_readers, *readers))
        first, *_ = fitted.values()
        for linear in linears:
            if reason := first[linear].reason:
                self.changed_grids[f"{name}.{linear}"] = reason
        grids = {
            grid: found
            for grid, fits in fitted.items()
            if (found := fits[linears[0]].grid) is not None
        }
        return GriddedSite(replace(site, linears=linears, source=source), grids)


def run_observed(layer: nn.Module, hidden: Tensor, arguments: LayerArguments) -> RunBatch:
    """Return what runs the first sample of a batch through a decoder layer.

    Writes in place are counted in its tensors, unlike in those of inference mode. If a layer cannot
    be run with one sample, all are used.
    """

    def run(samples: Tensor, call: LayerArguments) -> object:
        with torch.inference_mode(False), torch.no_grad():
            hidden = samples.clone() if call.added is None else samples + call.added
            result: object = layer(hidden, *call.args, **call.kwargs)
        return result

    alone = partial(run, hidden[:1], _first_sample(arguments, len(hidden)))
    try:
        alone()
    except (RuntimeError, IndexError, ValueError):
        return partial(run, hidden, arguments)
    return alone


def _first_sample(arguments: LayerArguments, samples: int) -> LayerArguments:
    """Return the arguments for the first sample of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:1] if value.ndim and len(value) == samples else value
        if type(value) in {tuple, list}:
            return type(value)(map(cut, value))
        if type(value) is dict:
            return {key: cut(entry) for key, entry in value.items()}
        return value

    return LayerArguments(cut(arguments.args), cut(dict(arguments.kwargs)), cut(arguments.added))
