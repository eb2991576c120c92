"""The linear layers that read one input, rounded together from what the samples brought to them.

Shapes: I inputs, O outputs of all linear layers of a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Site, Source
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import Gram, error, rounded
from passes.awq.samples import chunks
from passes.awq.scaling import Scaling, of_rows, relative_size, search
from passes.awq.step import WEIGHTS_AT_ONCE, AwqConfig

_TINY = 2.0**-100
_PROBES = 128
"""Outputs of a linear layer on which errors are measured; each adds to the error on its own, so a part of them tells."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How layers are rounded."""

    scales: torch.dtype
    """Of the scales in the file."""
    other: torch.dtype
    """Of all else in the file; vectors are rounded to it before what follows them looks at their results."""
    scaling: bool
    feedback: bool
    drift: float
    """The part of what rounding before a layer changed that its weights make up for."""

    @classmethod
    def of(cls, config: AwqConfig, other: torch.dtype) -> Choices:
        """As the config has it; scales have 16 bits."""
        scales = torch.float16 if config.format == "awq" or other == torch.float32 else other
        return cls(scales, other, config.scaling, config.refine == "gptq", config.drift)


@dataclass(slots=True)
class Seen:
    """What the samples brought to a site."""

    gram_II: Tensor
    """XᵀX."""
    magnitude_I: Tensor
    """Mean of |x|."""
    drift: Tensor | None
    """Xᵀ · (what should enter − what enters), [I, I]; or Xᵀ · (what the layers should say − what they say), [I, O]."""
    drift_of_input: bool

    def divide(self, scale_I: Tensor) -> None:
        """As if the samples had brought x / scale, to weights that are multiplied by it; in place."""
        self.gram_II.div_(scale_I.unsqueeze(1)).div_(scale_I)
        if self.drift is not None:
            self.drift.div_(scale_I.unsqueeze(1))
            if self.drift_of_input:
                self.drift.div_(scale_I)


@dataclass(frozen=True, slots=True)
class _Probes:
    """Some evenly spaced outputs of each linear layer of a site."""

    rows: dict[str, Tensor]
    """By linear layer, of its weight."""
    at: Tensor
    """The same in all outputs of the site."""

    @classmethod
    def of(cls, layer: nn.Module, site: Site) -> _Probes:
        """At most 128 of each."""
        rows, at, start = {}, [], 0
        for name in site.linears:
            count = linear_of(layer, name).out_features
            some = min(count, _PROBES)
            rows[name] = torch.arange(some) * count // some
            at.append(rows[name] + start)
            start += count
        return cls(rows, torch.cat(at))

    def by_linear(self) -> Iterator[tuple[str, slice]]:
        """Each linear layer, and where its outputs are among the probes."""
        start = 0
        for name, some in self.rows.items():
            yield name, slice(start, start + len(some))
            start += len(some)


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name in what holds it."""
    return cast("nn.Linear", layer.get_submodule(name))


def weights_of(layer: nn.Module, site: Site) -> Tensor:
    """Of all linear layers of a site, [I, O]."""
    return torch.cat([linear_of(layer, name).weight for name in site.linears]).T.contiguous()


def round_site(
    layer: nn.Module,
    site: Site,
    seen: Seen,
    grid: WeightGrid,
    choices: Choices,
    packed: dict[str, PackedLinear],
) -> tuple[list[dict[str, Any]], Tensor]:
    """Scale, make up for drift, round; the layer goes on with what the packed weights hold.

    Args:
        layer: what holds them, changed in place.
        site: the linear layers.
        seen: what the samples brought; its matrices are used up.
        grid: bits, group size, symmetry.
        choices: how.
        packed: what is packed of the layer already; the site's are added.

    Returns:
        A row of the report for each linear layer, and what the inputs are divided by now, [I].
    """
    weight_IO = weights_of(layer, site)
    probes = _Probes.of(layer, site)
    probe_IO = weight_IO[:, probes.at]
    whole_O = error(seen.gram_II, probe_IO).clamp(min=_TINY)
    steps = group_grids(probe_IO, torch.ones(len(probe_IO)), grid, choices.scales, candidates=1)
    nearest_O = error(seen.gram_II, nearest(probe_IO, *steps, grid.highest).sub_(probe_IO))
    scaling = Scaling(torch.ones(len(weight_IO)), 0.0, 1.0)
    if choices.scaling and site.source is not None:
        size_I = relative_size(weight_IO, grid.width(len(weight_IO)))
        scaling = search(
            probe_IO, size_I, seen.gram_II, seen.magnitude_I, site.source, grid, choices.scales
        )
    if scaling.ratio and site.source is not None:
        fold(layer, site.source, scaling.scale_I, choices.other, packed)
        weight_IO.mul_(scaling.scale_I.unsqueeze(1))
        seen.divide(scaling.scale_I)
    gram = Gram.of(seen.gram_II)
    _put(layer, site, _rounded(weight_IO, gram, seen, grid, choices), packed)
    probe_IO = weight_IO[:, probes.at]
    off_IO = (
        torch.cat([linear_of(layer, name).weight[some] for name, some in probes.rows.items()]).T
        - probe_IO
    )
    left_O = error(gram.gram_II, off_IO) - gram.damping * off_IO.square().sum(dim=0)
    spans_GO = probe_IO.view(-1, grid.width(len(probe_IO)), probe_IO.shape[1])
    spans_GO = (spans_GO.amax(dim=1).clamp(min=0) - spans_GO.amin(dim=1).clamp(max=0)).clamp(
        min=_TINY
    )
    scales_GO = torch.cat(
        [packed[name].scales_OG[some] for name, some in probes.rows.items()]
    ).T.float()
    rows = [
        {
            "linear": name,
            "bits": grid.bits,
            "scale_exponent": scaling.ratio,
            "range": float((scales_GO[:, some] * grid.highest / spans_GO[:, some]).mean()),
            "nearest_error": float(nearest_O[some].sum() / whole_O[some].sum()),
            "error": float(left_O[some].sum() / whole_O[some].sum()),
        }
        for name, some in probes.by_linear()
    ]
    rounded_rows = [
        {key: round(one, 6) if isinstance(one, float) else one for key, one in row.items()}
        for row in rows
    ]
    return rounded_rows, scaling.scale_I


def _rounded(
    weight_IO: Tensor, gram: Gram, seen: Seen, grid: WeightGrid, choices: Choices
) -> list[PackedLinear]:
    """Stretches of outputs, one after another, each moved to where it makes up for drift, and rounded."""
    change_II = gram.solved(seen.drift) if seen.drift is not None and seen.drift_of_input else None
    parts = []
    for some in chunks(weight_IO.shape[1], max(1, WEIGHTS_AT_ONCE // len(weight_IO))):
        target_IO = part_IO = weight_IO[:, some].contiguous()
        if change_II is not None:
            target_IO = torch.addmm(part_IO, change_II, part_IO, alpha=choices.drift)
        elif seen.drift is not None:
            target_IO = gram.solved(seen.drift[:, some]).mul_(choices.drift).add_(part_IO)
        parts.append(
            rounded(part_IO, target_IO, gram, grid, choices.scales, feedback=choices.feedback)
        )
    return parts


def fold(
    layer: nn.Module,
    source: Source,
    scale_I: Tensor,
    dtype: torch.dtype,
    packed: dict[str, PackedLinear] | None = None,
) -> None:
    """Divide the channels of a site's input by ``scale_I`` where they come from, in place, and make up for it in ``others``.

    Args:
        layer: what holds them.
        source: where.
        scale_I: positive; equal for inputs that come from one row.
        dtype: that vectors are rounded to.
        packed: layers that are packed already: their scales are divided, and their weights become what these hold then.
    """
    for name, first in source.others:
        linear_of(layer, name).weight.data[:, first : first + len(scale_I)] *= scale_I
    module: Any = layer.get_submodule(source.module)
    if source.kind == "norm":
        offset = source.offset
        module.weight.data = ((module.weight + offset) / scale_I - offset).to(dtype).float()
        if getattr(module, "bias", None) is not None:
            module.bias.data = (module.bias / scale_I).to(dtype).float()
        return
    rows_R = of_rows(scale_I, source)
    divisors_O = torch.ones(module.out_features)
    divisors_O[-len(rows_R) :] = rows_R
    if module.bias is not None:
        module.bias.data = (module.bias / divisors_O).to(dtype).float()
    if packed is not None and source.module in packed:
        packed[source.module] = packed[source.module].divided(divisors_O)
        module.weight.data = packed[source.module].dequantized()
    else:
        module.weight.data = module.weight / divisors_O.unsqueeze(1)


def _put(
    layer: nn.Module, site: Site, parts: list[PackedLinear], packed: dict[str, PackedLinear]
) -> None:
    """Packed weights to their layers, which go on with what these hold."""
    whole = PackedLinear.joined(parts)
    start = 0
    for name in site.linears:
        linear = linear_of(layer, name)
        packed[name] = whole.rows(start, start + linear.out_features)
        linear.weight.data = packed[name].dequantized()
        start += linear.out_features
