"""Modules whose fused experts are one linear layer per expert and projection.

Passes that work on ``nn.Linear`` then quantize experts like any other layer. Shapes: N tokens, K
experts of a token, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.families.transformers.experts.layout import ExpertLayout, possible_layouts
from compressor.models.families.transformers.experts.verify import first_correct_layout


@dataclass(slots=True)
class ExpertsReport:
    """Modules with experts, by name."""

    split: list[str] = field(default_factory=list)
    """Modules that consist of linear layers now."""
    kept: dict[str, str] = field(default_factory=dict)
    """Modules that are as they were, with the reason."""


class SplitExperts(nn.Module):
    """Base of the classes that ``split_experts`` gives to modules with experts.

    Each expert is a child named by its number, with linear layers ``gate_proj`` (where experts have
    a gate), ``up_proj`` and ``down_proj``. Every expert is called once per forward pass, with the
    tokens that are routed to it: possibly none.

    Attributes:
        expert_layout: arrangement of the fused parameters.
        token_indices: of the last forward pass, for each expert the indices of its tokens.
        reached: None if the router chooses; otherwise the number of experts, the first ones, that
            every token passes; see ``every_token_reaches``.
    """

    expert_layout: ExpertLayout
    token_indices: list[Tensor]
    reached: int | None

    def forward(self, hidden_states: Tensor, *routing: Any, **named_routing: Any) -> Tensor:
        """Return the weighted sum of the experts' outputs, [N, H].

        Args:
            hidden_states: [N, H].
            routing: expert indices, int [N, K], and their weights, [N, K]; neither where tokens
                are sorted by expert.
            named_routing: the same by name, in this order.
        """
        arguments = [*routing, *named_routing.values()]
        if not self.expert_layout.is_routed:
            return self._apply_sorted(hidden_states)
        indices, weights = arguments[:2]
        result = torch.zeros_like(hidden_states)
        self.token_indices = []
        for number in range(self.expert_layout.experts):
            if self.reached is None:
                tokens, choices = torch.where(indices == number)
                share = weights[tokens, choices, None]
            elif number < self.reached:
                tokens = torch.arange(len(hidden_states), device=hidden_states.device)
                share = hidden_states.new_full((len(tokens), 1), 1 / self.reached)
            else:
                break
            self.token_indices.append(tokens)
            output = self._apply_expert(number, hidden_states[tokens]) * share
            result.index_add_(0, tokens, output.to(result.dtype))
        return result

    def _apply_sorted(self, hidden_states: Tensor) -> Tensor:
        """Apply the experts in turn to equal numbers of rows."""
        rows = hidden_states.reshape(self.expert_layout.experts, -1, hidden_states.shape[-1])
        self.token_indices = [torch.arange(rows.shape[1])] * len(rows)
        if self.reached is not None:
            tokens = rows.sum(dim=0)  # an expert receives zeros in place of other experts' tokens
            rows = torch.stack([tokens] * self.reached)
        outputs = [self._apply_expert(number, part.clone()) for number, part in enumerate(rows)]
        result = torch.zeros_like(hidden_states)
        result[: len(rows) * rows.shape[1]] = torch.cat(outputs)
        return result

    def _apply_expert(self, number: int, tokens_NH: Tensor) -> Tensor:
        expert: Any = self.get_submodule(str(number))
        fused: Any = self
        if not self.expert_layout.has_gate:
            hidden = fused.act_fn(expert.up_proj(tokens_NH))
        else:
            gate, up = expert.gate_proj(tokens_NH), expert.up_proj(tokens_NH)
            if hasattr(self, "_apply_gate"):
                hidden = fused._apply_gate(self.expert_layout.joined_rows(gate, up))
            else:
                hidden = fused.act_fn(gate) * up
        output: Tensor = expert.down_proj(hidden)
        if getattr(self, "has_post_expert_norm", False):
            output = fused.post_expert_norm(output)
        return output


def split_experts(module: nn.Module) -> ExpertsReport:
    """Turn all fused experts in a module into linear layers, in place.

    A layout is used only if the split experts compute what the fused ones do. The linear layers
    share the memory of the fused parameters. Parameters may be on the device ``meta``.

    Args:
        module: a decoder layer, or a whole model.

    Returns:
        The modules that were split, and those that hold experts in an unknown form.
    """
    report = ExpertsReport()
    finder = LayoutFinder()
    for name, child in list(module.named_modules()):
        layout = finder.find(child)
        if layout is not None:
            _split(child, layout)
            report.split.append(name)
        elif possible_layouts(child):
            report.kept[name] = "linear layers compute something else than its fused experts"
        elif reason := _unknown_experts(child):
            report.kept[name] = reason
    return report


class LayoutFinder:
    """Finds the layouts of fused experts; modules of one class and shape are tried once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], ExpertLayout | None] = {}

    def find(self, module: nn.Module) -> ExpertLayout | None:
        """Return the layout with which linear layers compute what the module does, else None."""
        candidates = possible_layouts(module)
        if not candidates:
            return None
        shapes = tuple((name, value.shape) for name, value in module.named_parameters())
        key = (type(module), tuple(candidates), shapes)
        if key not in self._known:
            self._known[key] = first_correct_layout(module, candidates, _split)
        return self._known[key]


def join_experts(module: nn.Module) -> None:
    """Turn all split experts in a module into fused ones again, in place."""
    for child in list(module.modules()):
        if not isinstance(child, SplitExperts):
            continue
        layout = child.expert_layout
        parts = {name: child.get_parameter(name) for name in layout.part_names()}
        child.__class__ = type(child).__mro__[2]
        for number in range(layout.experts):
            delattr(child, str(number))
        for name in ("expert_layout", "token_indices", "reached"):
            delattr(child, name)
        for name, value in layout.join(parts).items():
            requires_grad = next(iter(parts.values())).requires_grad
            setattr(child, name, nn.Parameter(value.detach(), requires_grad))


def split_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of a module with split experts.

    Args:
        module: a module that ``split_experts`` has changed.
        tensors: tensors by the names that they had before.
    """
    result = dict(tensors)
    for prefix, child in named_experts(module):
        layout = child.expert_layout
        fused = {
            name: result.pop(f"{prefix}{name}")
            for name in layout.fused_names
            if f"{prefix}{name}" in result
        }
        result |= {f"{prefix}{name}": value for name, value in layout.split(fused).items()}
    return result


def named_experts(module: nn.Module) -> Iterator[tuple[str, SplitExperts]]:
    """Yield the modules with split experts, each with the prefix of its tensors' names."""
    for name, child in module.named_modules():
        if isinstance(child, SplitExperts):
            yield f"{name}." if name else "", child


@contextmanager
def every_token_reaches(module: nn.Module, count: int | None = None) -> Iterator[None]:
    """Let every token pass the first ``count`` split experts, or all, with equal weights.

    A question about experts, such as whether a scale folds, is then answered by one batch.
    """
    experts = [child for _, child in named_experts(module)]
    for child in experts:
        child.reached = count or child.expert_layout.experts
    try:
        yield
    finally:
        for child in experts:
            child.reached = None


def _split(module: nn.Module, layout: ExpertLayout) -> None:
    """Replace the fused parameters of a module by linear layers, in place."""
    fused = {name: module.get_parameter(name) for name in layout.fused_names}
    parts = layout.split({name: value.detach() for name, value in fused.items()})
    for name in fused:
        delattr(module, name)
    for number in range(layout.experts):
        expert = nn.Module()
        for projection in layout.projections:
            start = f"{number}.{projection}."
            values = {
                key.removeprefix(start): v for key, v in parts.items() if key.startswith(start)
            }
            setattr(expert, projection, _linear(values, fused[layout.first].requires_grad))
        module.add_module(str(number), expert)
    module.__class__ = type(f"Split{type(module).__name__}", (SplitExperts, type(module)), {})
    experts = cast("SplitExperts", module)
    experts.expert_layout, experts.token_indices, experts.reached = layout, [], None
    experts.train(module.training)


def _linear(values: Mapping[str, Tensor], requires_grad: bool) -> nn.Linear:
    outputs, inputs = values["weight"].shape
    linear = nn.Linear(inputs, outputs, bias="bias" in values, device="meta")
    for name, value in values.items():
        setattr(linear, name, nn.Parameter(value, requires_grad))
    return linear


def _unknown_experts(module: nn.Module) -> str | None:
    """Return the reason why a module with matrices in one tensor is not split; None for others."""
    if type(module).__module__.startswith("torch."):
        return None
    stacks = [
        f"{name} {list(value.shape)}"
        for name, value in module.named_parameters(recurse=False)
        if value.ndim == 3 and min(value.shape) > 1
    ]
    return f"unknown arrangement of {', '.join(stacks)}" if stacks else None
