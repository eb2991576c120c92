"""Check that split experts compute what the fused ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.models.families.transformers.experts.layout import ExpertLayout

_EXPERTS = 3
"""Experts of the copy that is tried, where the class allows fewer."""
_TOLERANCE = 1e-4
"""Largest difference relative to the largest output: float32 summed in another order."""


def first_correct_layout(
    module: nn.Module,
    candidates: Sequence[ExpertLayout],
    split: Callable[[nn.Module, ExpertLayout], None],
) -> ExpertLayout | None:
    """Return the first layout with which a module computes the same; None if there is none.

    A copy with random weights and few experts is tried, on tokens that reach all of them.

    Args:
        module: a module with fused experts.
        candidates: layouts that its shapes allow.
        split: replaces the fused parameters of a module in place.
    """
    generator = torch.Generator().manual_seed(0)
    sample = _small_copy(module, candidates[0], generator)
    experts = len(sample.get_parameter(candidates[0].first))
    for layout in candidates:
        inputs = _inputs(sample, layout, experts, generator)
        divided = deepcopy(sample)
        split(divided, replace(layout, experts=experts))
        try:
            with torch.no_grad():
                expected, result = sample(*inputs), divided(*inputs)
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
            continue  # another interface than that of routed or sorted tokens
        if _agree(expected, result):
            return layout
    return None


def _small_copy(module: nn.Module, layout: ExpertLayout, generator: torch.Generator) -> nn.Module:
    """Return a float32 copy with random weights, and with few experts if it counts its experts."""
    shapes = {name: value.shape for name, value in module.named_parameters()}
    copy = deepcopy(
        module, {id(value): nn.Parameter(torch.empty(0)) for value in module.parameters()}
    )
    experts = layout.experts
    if getattr(copy, "num_experts", None) == experts:
        experts = min(_EXPERTS, experts)
        vars(copy)["num_experts"] = experts
    for name, shape in shapes.items():
        sizes = (experts, *shape[1:]) if name in layout.fused_names else tuple(shape)
        value = torch.randn(sizes, generator=generator)
        if len(sizes) == 3:
            value *= sizes[-1] ** -0.5
        owner, _, leaf = name.rpartition(".")
        setattr(copy.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return copy.eval()


def _inputs(
    module: nn.Module, layout: ExpertLayout, experts: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return tokens, and their routing unless they are sorted by expert."""
    up = module.get_parameter(layout.first)
    width = up.shape[1] if layout.is_transposed else up.shape[2]
    tokens = torch.randn(2 * experts, width, generator=generator)
    if not layout.is_routed:
        return (tokens,)
    choices = min(2, experts)
    indices = (torch.arange(2 * experts).unsqueeze(1) + torch.arange(choices)) % experts
    return tokens, indices, torch.rand(indices.shape, generator=generator)


def _agree(expected: Tensor, result: Tensor) -> bool:
    if expected.shape != result.shape or not bool(expected.isfinite().all()):
        return False
    difference = float((expected - result).abs().max())
    return difference <= _TOLERANCE * float(expected.abs().max())
