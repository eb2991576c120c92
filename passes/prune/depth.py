"""How much a model would miss each layer of a stack: float64 [layers] per axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import forward_hooks
from compressor.models.capabilities.cuttable_axes import Axis
from passes.prune.importance import Batches, Loss, Scores, shares


def layers_by_weight(model: nn.Module, axes: Sequence[Axis]) -> Scores:
    """The norm of all weights of each layer, as a share of the stack's: for want of samples."""
    scores = {}
    for axis in axes:
        weights = [list(layer.parameters()) for layer in _layers(model, axis)]
        norms = [
            torch.stack([weight.detach().double().norm() for weight in layer]).norm()
            for layer in weights
        ]
        scores[axis.name] = shares(torch.stack(norms))
    return scores


def layers_by_cosine(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss
) -> Scores:
    """Mean of 1 − cos(input, output) of each layer: how much it turns what goes through (Men et al. 2024).

    As a share of the stack's.
    """
    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    with _seen_layers(model, axes) as seen, torch.no_grad():
        for batch in batches:
            loss(batch)
            for (name, number), (before, after) in seen.items():
                cosine = nn.functional.cosine_similarity(
                    before.flatten(1).double(), after.flatten(1).double(), dim=1
                )
                totals[name][number] += (1 - cosine).sum().cpu()
    return {name: shares(total.clamp(min=0)) for name, total in totals.items()}


def layers_by_taylor(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss
) -> Scores:
    """Mean over batches of (Σ g·(output − input))²: how the loss changes without the layer, to first order.

    It compares with ``taylor``.
    """
    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    count = 0
    with _seen_layers(model, axes) as seen:
        for batch in batches:
            gradients = torch.autograd.grad(loss(batch), [after for _, after in seen.values()])
            for ((name, number), (before, after)), gradient in zip(
                seen.items(), gradients, strict=True
            ):
                totals[name][number] += (
                    (gradient * (after - before).detach()).double().sum().square().cpu()
                )
            count += 1
    return {name: total / max(count, 1) for name, total in totals.items()}


def layers_by_loss(
    model: nn.Module, axes: Sequence[Axis], batches: Callable[[str], Batches], loss: Loss
) -> Scores:
    """How much the loss grows when the layer alone hands on what it is given: one pass over the samples for each layer.

    ``batches`` gives all samples anew; it is called with what they are for.
    """

    def mean(what: str) -> Tensor:
        return torch.stack([loss(batch).double() for batch in batches(what)]).mean().cpu()

    scores = {}
    with torch.no_grad():
        whole = mean("loss of all layers")
        for axis in axes:
            grown = []
            for number, layer in enumerate(_layers(model, axis), start=1):
                handle = layer.register_forward_hook(lambda _module, inputs, _output: inputs[0])
                grown.append(mean(f"loss without layer {number} of {axis.units}") - whole)
                handle.remove()
            scores[axis.name] = torch.stack(grown).clamp(min=0)
    return scores


def _layers(model: nn.Module, axis: Axis) -> list[nn.Module]:
    return [
        model.get_submodule(f"{axis.stack}.{number}") for number in axis.members(range(axis.units))
    ]


@contextmanager
def _seen_layers(
    model: nn.Module, axes: Sequence[Axis]
) -> Iterator[dict[tuple[str, int], tuple[Tensor, Tensor]]]:
    """(axis, layer) to the first input and the output of the last forward pass."""
    seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    keys = {
        f"{axis.stack}.{member}": (axis.name, number)
        for axis in axes
        for number, member in enumerate(axis.members(range(axis.units)))
    }

    def look(layer: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[keys[layer]] = (inputs[0], output)

    with forward_hooks(model, keys, after=look):
        yield seen
