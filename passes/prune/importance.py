"""Importance of the units of an axis, float64 [U] per axis.

Shapes: U units of an axis, C channels of a layer's input, N values, B bins, X all other elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis, Cut
from compressor.models.capabilities.unit_removal import iterate_rows_by_unit, rows_by_unit
from passes.prune.memory import consume_gradients

Scores = dict[str, Tensor]
"""Axis name to the importance of its units, float64 [U]."""
Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""Runs the model on a batch and returns the loss, a scalar."""
Run = Callable[[Mapping[str, Tensor]], object]
"""Runs the model on a batch."""
Batches = Iterable[Mapping[str, Tensor]]
ChannelCallback = Callable[[str, Tensor], None]
"""Called with a layer's name and its inputs [C, N]."""
_BINS = 32


def score_by_magnitude(model: nn.Module, axes: Sequence[Axis]) -> Scores:
    """Score units by the L2 norm of all weights that hold them (Li et al. 2017).

    Scores are shares of the axis' sum.
    """
    state = model.state_dict()
    scores = {}
    for axis in axes:
        cuts = [cut for cut in axis.cuts if state[cut.tensor].ndim > 1]
        squares_U = sum(
            weight_UX.square().sum(dim=1)
            for cut in cuts
            for (weight_UX,) in iterate_rows_by_unit(cut, axis.units, state[cut.tensor])
        )
        scores[axis.name] = normalize_to_sum(torch.as_tensor(squares_U).sqrt())
    return scores


def score_by_activation(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, run: Run
) -> Scores:
    """Score units by the norms of their activations and of the weight columns that read them.

    The score is Σ ‖activation‖₂ · ‖column‖₂ over the layers that read the unit (Wanda, Sun et al.
    2024, per unit instead of per weight), as a share of the axis' sum.
    """
    squares: dict[str, Tensor] = {}

    def add(reader: str, inputs_CN: Tensor) -> None:
        squares_C = inputs_CN.double().square().sum(dim=1)
        squares[reader] = squares[reader] + squares_C if reader in squares else squares_C

    check_observable(model, axes, "activation")
    _observe_readers(model, axes, batches, run, add)
    return _sum_over_readers(
        axes, {name: squares[name].sqrt() * _column_norms(model, name) for name in squares}
    )


def _column_norms(model: nn.Module, reader: str) -> Tensor:
    """Return the L2 norm of the weight column of each input channel, float64 [C]."""
    weight = model.get_parameter(f"{reader}.weight").detach()
    dim = input_dim(model.get_submodule(reader))
    columns = Cut(f"{reader}.weight", dim)
    chunks = iterate_rows_by_unit(columns, weight.shape[dim], weight)
    return torch.stack([chunk_CX.square().sum(dim=1) for (chunk_CX,) in chunks]).sum(dim=0).sqrt()


def input_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that its input is summed over.

    transformers' ``Conv1D`` is a linear layer with a transposed weight.
    """
    return 0 if type(layer).__name__ == "Conv1D" and not isinstance(layer, nn.Conv1d) else 1


def score_by_entropy(model: nn.Module, axes: Sequence[Axis], batches: Batches, run: Run) -> Scores:
    """Score units by the entropy of their activations, summed over the layers that read them.

    Activations are counted in 32 bins between the extremes of the first batch. A channel that is
    constant has entropy 0 (Luo & Wu 2017, who count one value per image). Scores are shares of the
    axis' sum.
    """
    counts: dict[str, Tensor] = {}
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def add(reader: str, inputs_CN: Tensor) -> None:
        low_C1, high_C1 = ranges.setdefault(
            reader, (inputs_CN.amin(dim=1, keepdim=True), inputs_CN.amax(dim=1, keepdim=True))
        )
        scaled_CN = (inputs_CN - low_C1) / (high_C1 - low_C1).clamp(
            min=torch.finfo(inputs_CN.dtype).tiny
        )
        bins_CN = (scaled_CN.clamp(0, 1) * (_BINS - 1)).long()
        count_CB = torch.zeros(len(bins_CN), _BINS).scatter_add_(
            1, bins_CN, torch.ones_like(bins_CN, dtype=torch.float32)
        )
        counts[reader] = counts[reader] + count_CB if reader in counts else count_CB

    check_observable(model, axes, "entropy")
    _observe_readers(model, axes, batches, run, add)
    return _sum_over_readers(
        axes, {name: _entropy(count_CB.double()) for name, count_CB in counts.items()}
    )


def score_by_taylor(model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss) -> Scores:
    """Score units by the squared change of the loss without them, to first order.

    The score is the mean over batches of (Σ gradient · weight)² (Molchanov et al. 2019, equation
    8), summed over the weight columns that read the unit: setting these to 0 is equivalent to
    removing it. Scores of different axes are comparable.
    """
    return _score_by_gradient(
        model,
        axes,
        batches,
        loss,
        lambda gradient_UX, weight_UX: (gradient_UX * weight_UX).sum(dim=1),
        torch.square,
    )


def score_by_gradient(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss
) -> Scores:
    """Score units by the L2 norm of the gradient of the weight columns that read them.

    Scores are means over batches, as shares of the axis' sum.
    """
    scores = _score_by_gradient(
        model,
        axes,
        batches,
        loss,
        lambda gradient_UX, _: gradient_UX.square().sum(dim=1),
        torch.sqrt,
    )
    return {name: normalize_to_sum(score_U) for name, score_U in scores.items()}


def _score_by_gradient(
    model: nn.Module,
    axes: Sequence[Axis],
    batches: Batches,
    loss: Loss,
    reduce_columns: Callable[[Tensor, Tensor], Tensor],
    transform_sum: Callable[[Tensor], Tensor],
) -> Scores:
    """Return the mean over batches of a function of each unit's sum over its readers.

    Args:
        model: the model.
        axes: the axes to score.
        batches: the calibration samples.
        loss: runs the model.
        reduce_columns: maps gradient and weight, both [U, X], to a term [U] of the sum.
        transform_sum: maps the sum over all readers [U] to the score of the batch [U].
    """
    readers: dict[nn.Parameter, list[tuple[Axis, Cut]]] = {}
    for axis in axes:
        for cut in axis.cuts:
            if cut.reads:
                readers.setdefault(model.get_parameter(cut.tensor), []).append((axis, cut))
    sums: Scores = {}

    def add(weight: nn.Parameter, gradient: Tensor) -> None:
        for axis, cut in readers[weight]:
            for chunks in iterate_rows_by_unit(cut, axis.units, gradient, weight.detach()):
                sums[axis.name] += reduce_columns(*chunks).cpu()

    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    count = 0
    with consume_gradients(model, readers, add):
        for batch in batches:
            sums |= {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
            loss(batch).backward()  # type: ignore[no-untyped-call]
            for name, sum_U in sums.items():
                totals[name] += transform_sum(sum_U)
            count += 1
    return {name: total_U / max(count, 1) for name, total_U in totals.items()}


def readers_of(model: nn.Module, axes: Sequence[Axis]) -> dict[str, nn.Module]:
    """Return the layers that read an axis and whose inputs are its units, by name.

    Weights of merged experts have no layer of their own.
    """
    return {
        cut.module: model.get_submodule(cut.module)
        for axis in axes
        for cut in axis.cuts
        if cut.reads and is_layer_input(model, cut)
    }


def is_layer_input(model: nn.Module, cut: Cut) -> bool:
    """Return True if the units of a cut are channels of the input of the layer that it cuts."""
    if not cut.tensor.endswith(".weight"):
        return False
    layer = model.get_submodule(cut.module)
    return model.get_parameter(cut.tensor).ndim > 1 and cut.dim == input_dim(layer)


def check_observable(model: nn.Module, axes: Sequence[Axis], importance: str) -> None:
    """Check that the units of every axis are inputs of layers.

    Raises:
        RequirementError: units of some axes cannot be observed; the message names the axes.
    """
    unseen = [
        axis.name
        for axis in axes
        if not any(cut.reads and is_layer_input(model, cut) for cut in axis.cuts)
    ]
    if unseen:
        raise RequirementError(
            f"`importance: {importance}` observes the inputs of layers; these units are the input "
            f"of none: {', '.join(unseen)}",
            remedy="set `importance: taylor` or `magnitude`",
        )


def _observe_readers(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, run: Run, add: ChannelCallback
) -> None:
    observe_channels(model, readers_of(model, axes), batches, run, add)


def observe_channels(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    run: Run,
    observe: ChannelCallback,
) -> None:
    """Run the model without gradients and pass on the inputs of layers, as [C, N] on the CPU."""

    def by_channel(name: str, inputs: Tensor) -> None:
        is_convolution = isinstance(layers[name], nn.Conv1d | nn.Conv2d | nn.Conv3d)
        channel_dim = 1 if is_convolution else -1
        observe(name, inputs.cpu().movedim(channel_dim, 0).flatten(1))

    observe_inputs(model, layers, batches, run, by_channel)


def observe_inputs(
    model: nn.Module,
    names: Iterable[str],
    batches: Batches,
    run: Run,
    observe: Callable[[str, Tensor], None],
) -> None:
    """Run the model without gradients and pass on the first input of each named module."""
    with (
        forward_hooks(model, names, before=lambda name, inputs: observe(name, inputs[0].detach())),
        torch.no_grad(),
    ):
        for batch in batches:
            run(batch)


def _sum_over_readers(axes: Sequence[Axis], channel_scores: Mapping[str, Tensor]) -> Scores:
    """Sum the scores of a unit's channels [C] over the layers that read it, as shares."""
    scores = {}
    for axis in axes:
        terms = [
            rows_by_unit(channel_scores[cut.module], replace(cut, dim=0), axis.units).sum(dim=1)
            for cut in axis.cuts
            if cut.reads and cut.module in channel_scores
        ]
        scores[axis.name] = normalize_to_sum(torch.stack(terms).sum(dim=0))
    return scores


def _entropy(count_CB: Tensor) -> Tensor:
    """Return the entropy of each histogram in nats, [C]."""
    probability_CB = count_CB / count_CB.sum(dim=1, keepdim=True)
    log_CB = probability_CB.clamp(min=torch.finfo(probability_CB.dtype).tiny).log()
    return -(probability_CB * log_CB).sum(dim=1)


def normalize_to_sum(values_U: Tensor) -> Tensor:
    """Divide values by their sum."""
    return values_U / values_U.sum().clamp(min=torch.finfo(torch.float64).tiny)
