"""One decoder layer rounded in place, site by site, each seeing what the rounded ones before it say.

Shapes: I inputs, O outputs of all linear layers of a site, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from calibration.capture import hooked
from compressor.models.packed.description import WeightGrid
from compressor.models.packed.linear import PackedLinear
from compressor.models.transformers_checkpoint.linears import Site, Source
from compressor.models.transformers_checkpoint.streaming import Arguments
from passes.awq.grids import group_grids, nearest
from passes.awq.rounding import Gram, error, rounded
from passes.awq.samples import Captures, chunks, flat
from passes.awq.scaling import Scaling, of_rows, search

_RIDGE = 0.1
"""Of the mean of H's diagonal: how hard it is to move a weight away from the parent's."""
_OUTPUTS_AT_ONCE = 4096
"""Outputs that are rounded together: memory follows it."""

Batches = Callable[[], Iterator[tuple[int, Tensor, Arguments]]]
"""(number, hidden states [B, T, hidden], the layer's other arguments) of every batch, as the rounded layers before left them."""


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
class RoundedLayer:
    """What came of a decoder layer."""

    packed: dict[str, PackedLinear] = field(default_factory=dict)
    """By the linear layer's name in the decoder layer."""
    report: list[dict[str, Any]] = field(default_factory=list)
    """A row for each site."""


class _ReachedError(Exception):
    """The forward pass came to the layer that was waited for."""


@torch.inference_mode()
def remember_exact(layer: nn.Module, sites: tuple[Site, ...], batch: int, hidden: Tensor, arguments: Arguments,
                   captures: Captures) -> Tensor:  # fmt: skip
    """Run the float layer on what the float layers before it said; keep what enters each site, and return its result."""
    first = {site.linears[0]: site.name for site in sites}
    streams = _streams(sites)

    def see(name: str, inputs: tuple[Any, ...]) -> None:
        key = first.get(name) or f"stream at {streams[name]}"
        captures.put(f"{key} {batch}", flat(inputs[0]))

    with hooked(layer, {**first, **streams}, before=see):
        return _result(layer, hidden, arguments)


@torch.inference_mode()
def round_layer(
    layer: nn.Module, sites: tuple[Site, ...], batches: Batches, captures: Captures | None, choices: Choices
) -> RoundedLayer:
    """Round the linear layers of ``layer``, in place, from what ``batches`` bring to them.

    Args:
        layer: a decoder layer, float32.
        sites: its linear layers, in the order in which they are computed.
        batches: see ``Batches``.
        captures: what ``remember_exact`` kept, where drift is made up for.
        choices: how.
    """
    found = RoundedLayer()
    for vector in [one for one in layer.parameters() if one.ndim == 1]:
        vector.data = vector.data.to(choices.other).float()
    for site in sites:
        seen = _look(layer, site, sites, batches, captures, choices.drift)
        _round_site(layer, site, seen, choices, found)
    return found


def result_of(layer: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a layer makes of hidden states."""
    with torch.inference_mode():
        return _result(layer, hidden, arguments)


def _result(layer: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    args, kwargs = arguments
    found = layer(hidden, *args, **kwargs)
    result: Tensor = found[0] if isinstance(found, tuple) else found
    return result


def _streams(sites: tuple[Site, ...]) -> dict[str, str]:
    """The norms whose input is the residual stream that a site adds to, to the name of that site."""
    norms = [site.source.module for site in sites if site.source.kind == "norm"]
    return dict(zip(norms, (site.name for site in sites if site.adds), strict=False))


@dataclass(slots=True)
class _Seen:
    """What the samples brought to a site."""

    gram_II: Tensor
    magnitude_I: Tensor
    """Mean of |x|."""
    drift_IO: Tensor | None
    """Xᵀ · (what the layers should say − what they say)."""
    tokens: int


def _look(
    layer: nn.Module,
    site: Site,
    sites: tuple[Site, ...],
    batches: Batches,
    captures: Captures | None,
    drift: float,
) -> _Seen:
    weight_IO = _weights(layer, site)
    inputs, outputs = weight_IO.shape
    wide = outputs > inputs
    gram_II, magnitude_I = torch.zeros(inputs, inputs), torch.zeros(inputs)
    # Where there are more outputs than inputs, Xᵀ(X' − X) is the smaller matrix, and the weights come last.
    drift_I = torch.zeros(inputs, inputs if wide else outputs) if drift and captures is not None else None
    streams = {name: at for name, at in _streams(sites).items() if at == site.name}
    tokens = 0
    for number, hidden, arguments in batches():
        got: dict[str, Tensor] = {}

        def see(name: str, given: tuple[Any, ...], got: dict[str, Tensor] = got) -> None:
            got[name] = flat(given[0])
            if name == site.linears[0]:
                raise _ReachedError

        try:
            with hooked(layer, (*streams, site.linears[0]), before=see):
                _result(layer, hidden, arguments)
        except _ReachedError:
            pass
        x_NI = got[site.linears[0]]
        gram_II.addmm_(x_NI.T, x_NI)
        magnitude_I += x_NI.abs().sum(dim=0)
        tokens += len(x_NI)
        if drift_I is not None and captures is not None:
            off = captures.get(f"{site.name} {number}") - x_NI
            if not wide:
                off = off @ weight_IO
            for name in streams:
                # Half of it: what is left of the stream's own drift is handed on, and made up for further on too.
                off.add_(captures.get(f"stream at {site.name} {number}") - got[name], alpha=0.5)
            drift_I.addmm_(x_NI.T, off)
    if drift_I is not None and wide:
        drift_I = drift_I @ weight_IO
    return _Seen(gram_II, magnitude_I / max(tokens, 1), drift_I, tokens)


def _weights(layer: nn.Module, site: Site) -> Tensor:
    """Of all linear layers of a site, [I, O]."""
    return torch.cat([_linear(layer, name).weight for name in site.linears]).T.contiguous()


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    return cast("nn.Linear", layer.get_submodule(name))


def _round_site(layer: nn.Module, site: Site, seen: _Seen, choices: Choices, found: RoundedLayer) -> None:
    weight_IO, gram_II, drift_IO = _weights(layer, site), seen.gram_II, seen.drift_IO
    whole = error(gram_II, weight_IO)
    scaling = Scaling(torch.ones(len(weight_IO)), 0.0, 1.0)
    if choices.scaling:
        scaling = search(weight_IO, gram_II, seen.magnitude_I, site.source, choices.grid, choices.scales)
    if scaling.ratio:
        scale_I1 = scaling.scale_I.unsqueeze(1)
        fold(layer, site.source, scaling.scale_I, choices.other, found.packed)
        weight_IO.mul_(scale_I1)
        gram_II.div_(scale_I1).div_(scale_I1.T)
        if drift_IO is not None:
            drift_IO.div_(scale_I1)
    target_IO = weight_IO
    if drift_IO is not None:
        target_IO = weight_IO + _made_up(gram_II, drift_IO).mul_(choices.drift)
    nearest_error = _nearest_error(weight_IO, gram_II, choices)
    gram = Gram.of(gram_II)
    parts, left = [], 0.0
    for some in chunks(weight_IO.shape[1], _OUTPUTS_AT_ONCE):
        packed, values_IO = rounded(
            weight_IO[:, some].contiguous(), target_IO[:, some].contiguous(), gram, choices.grid, choices.scales,
            feedback=choices.feedback,
        )  # fmt: skip
        left += error(gram_II, values_IO - weight_IO[:, some])
        parts.append(packed)
    _put(layer, site, parts, found)
    found.report.append(
        {
            "site": site.name,
            "ratio": scaling.ratio,
            "scaled_error": scaling.gain,
            "nearest_error": nearest_error / max(whole, torch.finfo(torch.float32).tiny),
            "error": left / max(whole, torch.finfo(torch.float32).tiny),
        }
    )


def _made_up(gram_II: Tensor, drift_IO: Tensor) -> Tensor:
    """(H + λ)⁻¹ · drift: the change of weights that makes up for it, by ridge regression."""
    ridged_II = gram_II.clone()
    ridged_II.diagonal().add_(_RIDGE * gram_II.diagonal().mean())
    return torch.cholesky_solve(drift_IO, torch.linalg.cholesky(ridged_II))


def _nearest_error(weight_IO: Tensor, gram_II: Tensor, choices: Choices) -> float:
    total = 0.0
    for some in chunks(weight_IO.shape[1], _OUTPUTS_AT_ONCE):
        part_IO = weight_IO[:, some].contiguous()
        grids = group_grids(part_IO, torch.ones(len(part_IO)), choices.grid, choices.scales, candidates=1)
        total += error(gram_II, nearest(part_IO, *grids, choices.grid.highest).sub_(part_IO))
    return total


def _put(layer: nn.Module, site: Site, parts: list[PackedLinear], found: RoundedLayer) -> None:
    """Packed weights to their layers, which go on with what these hold."""
    whole = PackedLinear(
        torch.cat([one.integers_OI for one in parts]),
        torch.cat([one.scales_OG for one in parts]),
        torch.cat([one.zeros_OG for one in parts]),
    )
    start = 0
    for name in site.linears:
        linear = _linear(layer, name)
        found.packed[name] = whole.rows(start, start + linear.out_features)
        linear.weight.data = found.packed[name].dequantized()
        start += linear.out_features


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
