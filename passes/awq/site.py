"""The linear layers that read one input, rounded together from what the samples brought to them.

Shapes: I inputs, O outputs of all linear layers of a site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.packed.description import WeightGrid
from compressor.models.packed.linear import PackedLinear
from compressor.models.transformers_checkpoint.linears import Site, Source
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import Gram, error, rounded
from passes.awq.samples import chunks
from passes.awq.scaling import Scaling, of_rows, search

_RIDGE = 0.1
"""Of the mean of H's diagonal: how hard it is to move a weight away from the parent's."""
_OUTPUTS_AT_ONCE = 4096
"""Outputs that are rounded together: memory follows it."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How layers are rounded."""

    grid: WeightGrid
    scales: torch.dtype
    """Of the scales in the file."""
    other: torch.dtype
    """Of all else in the file; vectors are rounded to it before what follows them looks at their results."""
    scaling: bool
    feedback: bool
    drift: float
    """The part of what rounding before a layer changed that its weights make up for."""


@dataclass(slots=True)
class Seen:
    """What the samples brought to a site."""

    gram_II: Tensor
    """XᵀX."""
    magnitude_I: Tensor
    """Mean of |x|."""
    drift_IO: Tensor | None
    """Xᵀ · (what the layers should say − what they say)."""


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """A linear layer of a decoder layer."""
    return cast("nn.Linear", layer.get_submodule(name))


def weights_of(layer: nn.Module, site: Site) -> Tensor:
    """Of all linear layers of a site, [I, O]."""
    return torch.cat([linear_of(layer, name).weight for name in site.linears]).T.contiguous()


def round_site(
    layer: nn.Module, site: Site, seen: Seen, choices: Choices, packed: dict[str, PackedLinear]
) -> dict[str, Any]:
    """Scale, make up for drift, round; the layer goes on with what the packed weights hold.

    Args:
        layer: the decoder layer, changed in place.
        site: the linear layers.
        seen: what the samples brought; its matrices are used up.
        choices: how.
        packed: what is packed of the decoder layer already; the site's are added.

    Returns:
        A row of the report; ``scale_I`` is what the inputs are divided by now.
    """
    weight_IO, gram_II, drift_IO = weights_of(layer, site), seen.gram_II, seen.drift_IO
    whole = max(error(gram_II, weight_IO), torch.finfo(torch.float32).tiny)
    before = _nearest_error(weight_IO, gram_II, choices)
    scaling = Scaling(torch.ones(len(weight_IO)), 0.0, 1.0)
    if choices.scaling:
        scaling = search(weight_IO, gram_II, seen.magnitude_I, site.source, choices.grid, choices.scales)
    if scaling.ratio:
        scale_I1 = scaling.scale_I.unsqueeze(1)
        fold(layer, site.source, scaling.scale_I, choices.other, packed)
        weight_IO.mul_(scale_I1)
        gram_II.div_(scale_I1).div_(scale_I1.T)
        if drift_IO is not None:
            drift_IO.div_(scale_I1)
    target_IO = weight_IO
    if drift_IO is not None:
        target_IO = _made_up(gram_II, drift_IO).mul_(choices.drift).add_(weight_IO)
    gram = Gram.of(gram_II)
    parts, left = [], 0.0
    for some in chunks(weight_IO.shape[1], _OUTPUTS_AT_ONCE):
        part_IO = weight_IO[:, some].contiguous()
        one, values_IO = rounded(
            part_IO, target_IO[:, some].contiguous(), gram, choices.grid, choices.scales, feedback=choices.feedback
        )
        left += error(gram_II, values_IO.sub_(part_IO))
        parts.append(one)
    _put(layer, site, parts, packed)
    figures = {"ratio": scaling.ratio, "scaled": scaling.gain, "nearest_error": before / whole, "error": left / whole}
    rows = {name: round(value, 6) for name, value in figures.items()}
    return {"site": site.name, **rows, **({"scale_I": scaling.scale_I} if site.block else {})}


def fold(
    layer: nn.Module, source: Source, scale_I: Tensor, dtype: torch.dtype, packed: dict[str, PackedLinear] | None = None
) -> None:
    """Divide the channels of a site's input by ``scale_I`` where they come from, in place.

    Args:
        layer: the decoder layer.
        source: where.
        scale_I: positive; equal for inputs that come from one row.
        dtype: that vectors are rounded to.
        packed: layers that are packed already: their scales are divided, and their weights become what these hold then.
    """
    module: Any = layer.get_submodule(source.module)
    if source.kind == "norm":
        offset = source.offset
        module.weight.data = ((module.weight + offset) / scale_I - offset).to(dtype).float()
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


def _made_up(gram_II: Tensor, drift_IO: Tensor) -> Tensor:
    """(H + λ)⁻¹ · drift: the change of weights that makes up for it, by ridge regression."""
    ridged_II = gram_II.clone()
    ridged_II.diagonal().add_(_RIDGE * gram_II.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    root_II, failed = torch.linalg.cholesky_ex(ridged_II)
    return torch.zeros_like(drift_IO) if failed else torch.cholesky_solve(drift_IO, root_II)


def _nearest_error(weight_IO: Tensor, gram_II: Tensor, choices: Choices) -> float:
    """Of rounding to the nearest, on grids from the smallest to the largest weight of a group."""
    total = 0.0
    for some in chunks(weight_IO.shape[1], _OUTPUTS_AT_ONCE):
        part_IO = weight_IO[:, some].contiguous()
        grids = group_grids(part_IO, torch.ones(len(part_IO)), choices.grid, choices.scales, candidates=1)
        total += error(gram_II, nearest(part_IO, *grids, choices.grid.highest).sub_(part_IO))
    return total


def _put(layer: nn.Module, site: Site, parts: list[PackedLinear], packed: dict[str, PackedLinear]) -> None:
    """Packed weights to their layers, which go on with what these hold."""
    whole = PackedLinear(
        torch.cat([one.integers_OI for one in parts]),
        torch.cat([one.scales_OG for one in parts]),
        torch.cat([one.zeros_OG for one in parts]),
    )
    start = 0
    for name in site.linears:
        linear = linear_of(layer, name)
        packed[name] = whole.rows(start, start + linear.out_features)
        linear.weight.data = packed[name].dequantized()
        start += linear.out_features
