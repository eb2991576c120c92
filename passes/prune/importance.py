"""How much a model would miss each unit of an axis: float64 [units] per axis.

Shapes: U units of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.models.axes import Axis, Cut
from passes.prune.surgery import units_of

Scores = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""A batch to the loss of the model's answers, a scalar."""


def magnitude(model: nn.Module, axes: Sequence[Axis]) -> Scores:
    """The norm of all weights that hold a unit, as a share of the axis' (Li et al. 2017)."""
    state = model.state_dict()
    scores = {}
    for axis in axes:
        weights = [cut for cut in axis.cuts if state[cut.tensor].ndim > 1]
        squares_U = sum(units_of(state[cut.tensor].double(), cut, axis.units).square().sum(dim=1) for cut in weights)
        scores[axis.name] = _shares(torch.as_tensor(squares_U).sqrt())
    return scores


def activation(model: nn.Module, axes: Sequence[Axis], batches: Iterable[Mapping[str, Tensor]], loss: Loss) -> Scores:
    """Σ over readers of ‖input of the unit‖₂ · ‖its column‖₂, as a share of the axis' (Wanda, Sun et al. 2024, by unit)."""
    readers = {cut.module: model.get_submodule(cut.module) for axis in axes for cut in axis.cuts if cut.reads}
    energy: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    for name, module in readers.items():

        def remember(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            channel = -1 if isinstance(module, nn.Linear) else 1
            squares = inputs[0].detach().double().square().movedim(channel, 0).flatten(1).sum(dim=1)
            energy[name] = energy.get(name, torch.zeros_like(squares)) + squares

        handles.append(module.register_forward_pre_hook(remember))
    try:
        with torch.no_grad():
            for batch in batches:
                loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    scores = {}
    for axis in axes:
        total_U = torch.zeros(axis.units, dtype=torch.float64)
        for cut in axis.cuts:
            if cut.reads:
                column_U = _parameter(model, cut).detach().double().movedim(1, 0).flatten(1).norm(dim=1)
                total_U += (energy[cut.module].sqrt() * column_U).reshape(axis.units, cut.block).norm(dim=1)
        scores[axis.name] = _shares(total_U)
    return scores


def taylor(model: nn.Module, axes: Sequence[Axis], batches: Iterable[Mapping[str, Tensor]], loss: Loss) -> Scores:
    """Mean over batches of (Σ g·w)² over what reads the unit: how the loss changes without it, to first order.

    Molchanov et al. 2019, equation 8, with the sum over the columns that read the unit: setting them to 0 is exactly to
    remove it. Scores of different axes compare.
    """
    weights = {cut.tensor: _parameter(model, cut) for axis in axes for cut in axis.cuts if cut.reads}
    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    count = 0
    for batch in batches:
        gradients = torch.autograd.grad(loss(batch), list(weights.values()), allow_unused=True)
        products = {
            name: weight.detach() * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
        for axis in axes:
            change_U = torch.zeros(axis.units, dtype=torch.float64)
            for cut in axis.cuts:
                if cut.reads and cut.tensor in products:
                    change_U += units_of(products[cut.tensor].double(), cut, axis.units).sum(dim=1)
            totals[axis.name] += change_U.square()
        count += 1
    return {name: total / max(count, 1) for name, total in totals.items()}


def _parameter(model: nn.Module, cut: Cut) -> Tensor:
    return model.get_parameter(cut.tensor)


def _shares(values_U: Tensor) -> Tensor:
    return values_U / values_U.sum().clamp(min=torch.finfo(torch.float64).tiny)
