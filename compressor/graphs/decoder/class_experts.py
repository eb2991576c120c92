"""Experts of a class of transformers: their modules, and what their router computes.

The router's choice and shares are measured: a copy of the block with random weights, whose experts
and shared network are replaced by recorders, is run on random tokens, and compared with every rule
that a graph can compute.

Shapes: N tokens, E experts, K experts of a token, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graphs.decoder.activations import Activation
from compressor.graphs.decoder.class_modules import UnknownStructureError
from compressor.graphs.decoder.class_probes import ACTIVATION_FUNCTIONS
from compressor.graphs.decoder.mixture import ClampedGate, ExpertGroups, Experts, Router
from compressor.graphs.decoder.routing import shares_of
from compressor.models.families.transformers.experts.layout import ExpertLayout, possible_layouts
from compressor.models.families.transformers.experts.split import LayoutFinder

_TOKENS = 32
_GROUP_FIELDS = (("num_group", "topk_group"), ("n_group", "topk_group"))
_JITTERS = ("router_jitter_noise",)
_CLAMPS = ("alpha", "limit")


class _Recorder(nn.Module):
    """Stands for the experts, or for the network that all tokens pass; remembers its arguments."""

    def __init__(self, result_NH: Tensor) -> None:
        super().__init__()
        self.result_NH = result_NH
        self.arguments: tuple[Tensor, ...] = ()

    def forward(self, hidden_states: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
        self.arguments = (hidden_states.reshape(self.result_NH.shape), *routing, *named.values())
        return self.result_NH.view(hidden_states.shape).clone()


def experts_of(block: nn.Module) -> str | None:
    """Return the name of the child that holds fused experts; None if there is none."""
    return next((name for name, child in block.named_children() if possible_layouts(child)), None)


class ExpertReader:
    """Reads the experts of the layers of one class; equal layers are tried once."""

    def __init__(self) -> None:
        self._finder = LayoutFinder()
        self._routers: dict[tuple[object, ...], Router] = {}

    def experts(self, block: nn.Module, name: str, place: str) -> Experts:
        """Return the experts of a block.

        Args:
            block: the feed-forward network of a layer.
            name: of its experts.
            place: name of the block in its layer, with a dot.

        Raises:
            UnknownStructureError: they compute something that the graph cannot.
        """
        experts: Any = getattr(block, name)
        layout = self._finder.find(experts)
        has_norm = getattr(experts, "has_post_expert_norm", False)
        if layout is None or not layout.is_routed or has_norm:
            raise UnknownStructureError(f"experts of the class {type(experts).__name__}")
        width = int(experts.down_proj.shape[1 if layout.is_transposed else 2])
        return Experts(f"{place}{name}", layout, width, _activation(experts, layout))

    def router(
        self, block: nn.Module, experts: str, shared: str | None, gate: str | None
    ) -> tuple[Router, list[str]]:
        """Return the router of a block and the modules that hold its tensors.

        Args and errors as of ``read_router``.
        """
        key = (type(block), shared, gate, *_numbers(block))
        if key not in self._routers:
            self._routers[key] = read_router(block, experts, shared, gate)
        router = self._routers[key]
        names = (router.weight, router.bias, router.correction)
        return router, [name.rpartition(".")[0] or name for name in names if name]


def _numbers(block: nn.Module) -> list[object]:
    """Return the shapes and the numbers that the modules of a block hold."""
    shapes: list[object] = [(name, value.shape) for name, value in block.named_parameters()]
    numbers = (
        (name, field, value)
        for name, part in block.named_modules()
        for field, value in sorted(vars(part).items())
        if isinstance(value, int | float) and field != "layer_idx"
    )
    return [*shapes, *numbers]


def _activation(experts: Any, layout: ExpertLayout) -> Activation | ClampedGate:
    """Return what the experts compute between their projections, tried on random values."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (6 * torch.randn(64, 4, generator=generator) for _ in range(2))
    with torch.no_grad():
        if not layout.has_gate:
            expected, up = experts.act_fn(gate), torch.ones_like(up)
        elif hasattr(experts, "_apply_gate"):
            expected = experts._apply_gate(layout.joined_rows(gate, up))
        else:
            expected = experts.act_fn(gate) * up
        for name, function in ACTIVATION_FUNCTIONS.items():
            if torch.allclose(function(gate) * up, expected, rtol=1e-5, atol=1e-5):
                return name
        if layout.has_gate and all(hasattr(experts, field) for field in _CLAMPS):
            clamped = ClampedGate(*(float(getattr(experts, field)) for field in _CLAMPS))
            small, bound = gate.clamp(max=clamped.limit), clamped.limit
            actual = small * torch.sigmoid(clamped.alpha * small) * (up.clamp(-bound, bound) + 1)
            if torch.allclose(actual, expected, rtol=1e-5, atol=1e-5):
                return clamped
    raise UnknownStructureError(f"the activation of {type(experts).__name__}")


def read_router(block: nn.Module, experts: str, shared: str | None, gate: str | None) -> Router:
    """Return the router of a block; its names are relative to the block.

    Args:
        block: the feed-forward network of a layer, its parameters on the device ``meta``.
        experts: name of its experts.
        shared: name of the network that all tokens pass; None if there is none.
        gate: name of the linear layer that weighs it.

    Raises:
        UnknownStructureError: the block computes something else than the sum of experts that a
            known rule chooses, and of the shared network.
    """
    sample, tokens_NH = _sample(block, experts)
    recorders = {name: _Recorder(torch.randn_like(tokens_NH)) for name in (experts, shared) if name}
    for name, recorder in recorders.items():
        setattr(sample, name, recorder)
    unknown = UnknownStructureError(f"experts chosen as {type(block).__name__} does")
    try:
        with torch.no_grad():
            result = sample(tokens_NH[None])
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        raise unknown from None
    result = result[0] if isinstance(result, tuple) else result
    expected_NH = recorders[experts].result_NH
    if shared is not None:
        weight = _gate(sample, gate, tokens_NH)
        expected_NH = expected_NH + recorders[shared].result_NH * weight
    reads = all(
        r.arguments and torch.allclose(r.arguments[0], tokens_NH) for r in recorders.values()
    )
    routing = recorders[experts].arguments[1:3]
    if not reads or len(routing) < 2 or not torch.allclose(result[0], expected_NH, atol=1e-5):
        raise unknown
    indices_NK, weights_NK = routing
    count = getattr(block, experts).down_proj.shape[0]
    shares_NE = torch.zeros(len(tokens_NH), count).scatter_(1, indices_NK, weights_NK.float())
    tensors = {**dict(sample.named_parameters()), **dict(sample.named_buffers())}
    for candidate in _candidates(sample, count, indices_NK.shape[1], tensors):
        actual_NE = shares_of(candidate, tokens_NH, tensors)
        if not torch.equal(actual_NE > 0, shares_NE > 0):
            continue
        factor = float(shares_NE.sum() / actual_NE.sum())
        if torch.allclose(actual_NE * factor, shares_NE, rtol=1e-4, atol=1e-6):
            return replace(candidate, factor=1.0 if abs(factor - 1) < 1e-4 else round(factor, 6))
    raise unknown


def _sample(block: nn.Module, experts: str) -> tuple[nn.Module, Tensor]:
    """Return a copy of a block in float32 with random weights, and tokens [N, H].

    Its experts stay on the device ``meta``.
    """
    sample = deepcopy(block).float().train(False)
    generator = torch.Generator().manual_seed(0)
    hidden = 0
    for name, value in [*sample.named_parameters(), *sample.named_buffers()]:
        owner_name, _, leaf = name.rpartition(".")
        owner = sample.get_submodule(owner_name)
        if not (owner_name == experts or owner_name.startswith(f"{experts}.")):
            is_buffer = leaf in owner._buffers
            random = torch.randn(value.shape, generator=generator)
            random *= 0.2 if value.squeeze().ndim < 2 else 2 * value.shape[-1] ** -0.5
            setattr(owner, leaf, random if is_buffer else nn.Parameter(random, False))
    layout = possible_layouts(getattr(block, experts))[0]
    first = getattr(block, experts).get_parameter(layout.first)
    hidden = int(first.shape[1 if layout.is_transposed else 2])
    return sample, torch.randn(_TOKENS, hidden, generator=generator)


def _gate(sample: nn.Module, gate: str | None, tokens_NH: Tensor) -> Tensor | float:
    return 1.0 if gate is None else torch.sigmoid(getattr(sample, gate)(tokens_NH))


def _candidates(
    sample: nn.Module, experts: int, chosen: int, tensors: dict[str, Tensor]
) -> Iterator[Router]:
    """Yield every rule that a block may compute, with the fields that its modules state."""
    matrices = [n for n, value in tensors.items() if value.ndim == 2 and len(value) == experts]
    vectors: list[str | None] = [n for n, value in tensors.items() if value.numel() == experts]
    owners = [part for _, part in sample.named_modules()]
    groups: list[ExpertGroups | None] = [None]
    for owner, fields in product(owners, _GROUP_FIELDS):
        count, kept = (getattr(owner, field, None) for field in fields)
        if isinstance(count, int) and isinstance(kept, int) and experts % count == 0 and count > 1:
            groups += [ExpertGroups(count, kept, rank) for rank in ("top 2", "max")]
    for weight, bias, correction in product(matrices, [None, *vectors], [None, *vectors]):
        for group, normalized in product(groups, (True, False)):
            for scores in ("softmax", "sigmoid"):
                yield Router(
                    weight,
                    bias,
                    experts,
                    chosen,
                    scores,
                    correction,
                    group,
                    is_normalized=normalized,
                )
        for owner, field in product(owners, _JITTERS):
            if isinstance(jitter := getattr(owner, field, None), float):
                router = Router(weight, bias, experts, chosen, "sparse mixer")
                yield replace(router, jitter=jitter)
