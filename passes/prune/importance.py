"""How much a model would miss each unit of an axis: float64 [units] per axis.

Shapes: U units of an axis, C channels of a layer's input, N values, B bins, X all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.cuttable_axes import Axis, Cut
from passes.prune.memory import gradients_as_they_come
from passes.prune.surgery import parts_of, units_of

Scores = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""A batch to the loss of the model's answers, a scalar."""
Batches = Iterable[Mapping[str, Tensor]]
_BINS = 32


def magnitude(model: nn.Module, axes: Sequence[Axis]) -> Scores:
    """The norm of all weights that hold a unit, as a share of the axis' (Li et al. 2017)."""
    state = model.state_dict()
    scores = {}
    for axis in axes:
        weights = [cut for cut in axis.cuts if state[cut.tensor].ndim > 1]
        squares_U = sum(
            part_UX.square().sum(dim=1)
            for cut in weights
            for (part_UX,) in parts_of(cut, axis.units, state[cut.tensor])
        )
        scores[axis.name] = shares(torch.as_tensor(squares_U).sqrt())
    return scores


def activation(model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss) -> Scores:
    """Σ over readers of ‖input of the unit‖₂ · ‖its column‖₂, as a share of the axis' (Wanda, Sun et al. 2024, by unit)."""
    energy: dict[str, Tensor] = {}

    def add(reader: str, inputs_CN: Tensor) -> None:
        squares_C = inputs_CN.double().square().sum(dim=1)
        energy[reader] = energy[reader] + squares_C if reader in energy else squares_C

    watch(model, axes, batches, loss, add)
    return _over_readers(
        axes, {name: energy[name].sqrt() * _column_norms(model, name) for name in energy}
    )


def _column_norms(model: nn.Module, reader: str) -> Tensor:
    """‖column‖₂ of each input channel of a layer, float64 [C]."""
    weight = model.get_parameter(f"{reader}.weight").detach()
    channels = weight.shape[1]
    parts = parts_of(Cut(f"{reader}.weight", 1), channels, weight)
    return torch.stack([part_CX.square().sum(dim=1) for (part_CX,) in parts]).sum(dim=0).sqrt()


def entropy(model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss) -> Scores:
    """Σ over readers of the entropy of the unit's values, in a histogram between the extremes of the first batch.

    A channel that always says the same says nothing (Luo & Wu 2017, whose bins are of one value per image). A share of the axis'.
    """
    counts: dict[str, Tensor] = {}
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def add(reader: str, inputs_CN: Tensor) -> None:
        low_C1, high_C1 = ranges.setdefault(
            reader, (inputs_CN.amin(dim=1, keepdim=True), inputs_CN.amax(dim=1, keepdim=True))
        )
        scaled = (inputs_CN - low_C1) / (high_C1 - low_C1).clamp(
            min=torch.finfo(inputs_CN.dtype).tiny
        )
        bins_CN = (scaled.clamp(0, 1) * (_BINS - 1)).long()
        found_CB = torch.zeros(len(bins_CN), _BINS).scatter_add_(
            1, bins_CN, torch.ones_like(bins_CN, dtype=torch.float32)
        )
        counts[reader] = counts[reader] + found_CB if reader in counts else found_CB

    watch(model, axes, batches, loss, add)
    return _over_readers(
        axes, {name: _entropy(count_CB.double()) for name, count_CB in counts.items()}
    )


def taylor(model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss) -> Scores:
    """Mean over batches of (Σ g·w)² over what reads the unit: how the loss changes without it, to first order.

    Molchanov et al. 2019, equation 8, with the sum over the columns that read the unit: setting them to 0 is exactly to
    remove it. Scores of different axes compare.
    """
    return _by_gradient(
        model,
        axes,
        batches,
        loss,
        lambda gradient_UX, weight_UX: (gradient_UX * weight_UX).sum(dim=1),
        torch.square,
    )


def gradient(model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss) -> Scores:
    """The L2 norm of the gradient of the columns that read the unit, mean over batches, as a share of the axis'."""
    scores = _by_gradient(
        model,
        axes,
        batches,
        loss,
        lambda gradient_UX, _: gradient_UX.square().sum(dim=1),
        torch.sqrt,
    )
    return {name: shares(score_U) for name, score_U in scores.items()}


def _by_gradient(
    model: nn.Module,
    axes: Sequence[Axis],
    batches: Batches,
    loss: Loss,
    of_column: Callable[[Tensor, Tensor], Tensor],
    of_sum: Callable[[Tensor], Tensor],
) -> Scores:
    """Mean over batches of ``of_sum`` of Σ over readers of ``of_column(gradient, weight)``, each [units, rest] to [units]."""
    places: dict[nn.Parameter, list[tuple[Axis, Cut]]] = {}
    for axis in axes:
        for cut in axis.cuts:
            if cut.reads:
                places.setdefault(model.get_parameter(cut.tensor), []).append((axis, cut))
    sums: Scores = {}

    def take(weight: nn.Parameter, gradient: Tensor) -> None:
        for axis, cut in places[weight]:
            for parts in parts_of(cut, axis.units, gradient, weight.detach()):
                sums[axis.name] += of_column(*parts).cpu()

    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    count = 0
    with gradients_as_they_come(model, places, take):
        for batch in batches:
            sums |= {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
            loss(batch).backward()  # type: ignore[no-untyped-call]
            for name, sum_U in sums.items():
                totals[name] += of_sum(sum_U)
            count += 1
    return {name: total_U / max(count, 1) for name, total_U in totals.items()}


def readers_of(model: nn.Module, axes: Sequence[Axis]) -> dict[str, nn.Module]:
    """The layers that read an axis, by name."""
    return {
        cut.module: model.get_submodule(cut.module)
        for axis in axes
        for cut in axis.cuts
        if cut.reads
    }


def watch(
    model: nn.Module,
    axes: Sequence[Axis],
    batches: Batches,
    loss: Loss,
    add: Callable[[str, Tensor], None],
) -> None:
    """Run the model; ``add`` gets the name of each layer that reads an axis, and its inputs [channels, values]."""
    watch_channels(model, readers_of(model, axes), batches, loss, add)


def watch_channels(
    model: nn.Module,
    readers: Mapping[str, nn.Module],
    batches: Batches,
    loss: Loss,
    add: Callable[[str, Tensor], None],
) -> None:
    """Run the model; ``add`` gets the name of each of these layers, and its inputs [channels, values]."""

    def see(name: str, inputs: Tensor) -> None:
        channel = -1 if isinstance(readers[name], nn.Linear) else 1
        add(name, inputs.cpu().movedim(channel, 0).flatten(1))

    watch_inputs(model, readers, batches, loss, see)


def watch_inputs(
    model: nn.Module,
    names: Iterable[str],
    batches: Batches,
    loss: Loss,
    see: Callable[[str, Tensor], None],
) -> None:
    """Run the model; ``see`` gets the name of each of these modules, and its first input."""
    with (
        forward_hooks(model, names, before=lambda name, inputs: see(name, inputs[0].detach())),
        torch.no_grad(),
    ):
        for batch in batches:
            loss(batch)


def _over_readers(axes: Sequence[Axis], by_channel: Mapping[str, Tensor]) -> Scores:
    """Reader to a value for each of its input channels, to one for each unit, as a share of the axis'."""
    scores = {}
    for axis in axes:
        values = [
            units_of(by_channel[cut.module], replace(cut, dim=0), axis.units).sum(dim=1)
            for cut in axis.cuts
            if cut.reads
        ]
        scores[axis.name] = shares(torch.stack(values).sum(dim=0))
    return scores


def _entropy(count_CB: Tensor) -> Tensor:
    part_CB = count_CB / count_CB.sum(dim=1, keepdim=True)
    return -(part_CB * part_CB.clamp(min=torch.finfo(part_CB.dtype).tiny).log()).sum(dim=1)


def shares(values_U: Tensor) -> Tensor:
    """Each value's part of their sum."""
    return values_U / values_U.sum().clamp(min=torch.finfo(torch.float64).tiny)
