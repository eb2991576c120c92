"""Importance of the layers of a stack, float64 [layers] per axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.discovered_axes.verification import skipped
from passes.prune.importance import Batches, Loss, Run, Scores, normalize_to_sum


def score_layers_by_weight(model: nn.Module, axes: Sequence[Axis]) -> Scores:
    """Score layers by the L2 norm of all their weights, as shares; needs no samples."""
    scores = {}
    for axis in axes:
        norms = [
            torch.stack([weight.detach().double().norm() for weight in layer.parameters()]).norm()
            for layer in _layers(model, axis)
        ]
        scores[axis.name] = normalize_to_sum(torch.stack(norms))
    return scores


def score_layers_by_cosine(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, run: Run
) -> Scores:
    """Score layers by the mean of 1 − cos(input, output) over samples (Men et al. 2024).

    Scores are shares of the axis' sum.
    """
    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    with _captured_layers(model, axes) as captured, torch.no_grad():
        for batch in batches:
            run(batch)
            for (name, number), (inputs, output) in captured.items():
                cosine = nn.functional.cosine_similarity(
                    inputs.flatten(1).double(), output.flatten(1).double(), dim=1
                )
                totals[name][number] += (1 - cosine).sum().cpu()
    return {name: normalize_to_sum(total.clamp(min=0)) for name, total in totals.items()}


def score_layers_by_taylor(
    model: nn.Module, axes: Sequence[Axis], batches: Batches, loss: Loss
) -> Scores:
    """Score layers by the squared change of the loss without them, to first order.

    The score is the mean over batches of (Σ gradient · (output − input))². It is comparable with
    the scores of ``score_by_taylor``.
    """
    totals = {axis.name: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    count = 0
    with _captured_layers(model, axes) as captured:
        for batch in batches:
            gradients = torch.autograd.grad(
                loss(batch), [output for _, output in captured.values()]
            )
            for ((name, number), (inputs, output)), gradient in zip(
                captured.items(), gradients, strict=True
            ):
                change = (gradient * (output - inputs).detach()).double().sum()
                totals[name][number] += change.square().cpu()
            count += 1
    return {name: total / max(count, 1) for name, total in totals.items()}


def score_layers_by_loss(
    model: nn.Module, axes: Sequence[Axis], batches: Callable[[str], Batches], loss: Loss
) -> Scores:
    """Score layers by the increase of the mean loss when a layer returns its input; at least 0.

    Args:
        model: the model.
        axes: the stacks to score.
        batches: returns all samples again, and reports progress as its argument; called once for
            the whole model and once per layer.
        loss: runs the model.
    """

    def mean_loss(activity: str) -> Tensor:
        return torch.stack([loss(batch).double() for batch in batches(activity)]).mean().cpu()

    scores = {}
    with torch.no_grad():
        baseline = mean_loss("loss of all layers")
        for axis in axes:
            increases = []
            for number, layer in enumerate(_layers(model, axis), start=1):
                handle = layer.register_forward_hook(_skip, with_kwargs=True)
                increases.append(
                    mean_loss(f"loss without layer {number} of {axis.units}") - baseline
                )
                handle.remove()
            scores[axis.name] = torch.stack(increases).clamp(min=0)
    return scores


def _layers(model: nn.Module, axis: Axis) -> list[nn.Module]:
    return [
        model.get_submodule(f"{axis.stack}.{number}") for number in axis.members(range(axis.units))
    ]


def _skip(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    return skipped(args, kwargs, output)


@contextmanager
def _captured_layers(
    model: nn.Module, axes: Sequence[Axis]
) -> Iterator[dict[tuple[str, int], tuple[Tensor, Tensor]]]:
    """Yield a dict of (axis name, unit) to the layer's first input and output of the last run."""
    captured: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    handles = []

    def register(layer: nn.Module, key: tuple[str, int]) -> None:
        def capture(
            _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
        ) -> None:
            inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            captured[key] = (inputs[0], output[0] if isinstance(output, tuple) else output)

        handles.append(layer.register_forward_hook(capture, with_kwargs=True))

    try:
        for axis in axes:
            for number, member in enumerate(axis.members(range(axis.units))):
                register(model.get_submodule(f"{axis.stack}.{member}"), (axis.name, number))
        yield captured
    finally:
        for handle in handles:
            handle.remove()
