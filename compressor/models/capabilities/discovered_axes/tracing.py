"""Record the dependencies of channels while a module runs once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.models.capabilities.discovered_axes.channel_graph import Call, ChannelGraph, Rule
from compressor.models.capabilities.discovered_axes.labels import Labels
from compressor.models.capabilities.discovered_axes.norm_rules import NORM_RULES
from compressor.models.capabilities.discovered_axes.product_rules import PRODUCT_RULES
from compressor.models.capabilities.discovered_axes.shape_rules import SHAPE_RULES


def elementwise(graph: ChannelGraph, call: Call) -> Labels:
    """Join the labels of all tensors, aligned by broadcasting."""
    return graph.combine(call.tensors(), call.outputs[0].ndim)


def gated(graph: ChannelGraph, call: Call) -> Labels:
    """Join the two halves of the input of a gated linear unit."""
    inputs, dim = call.args[0], call.argument(1, "dim", -1)
    labels = graph.labels(inputs)
    operands = []
    for half in (0, 1):
        tracks = [
            track.chunk(2, dim)[half] if track.shape[dim] > 1 else track for track in labels.tracks
        ]
        operands.append((Labels(tracks), tuple(call.outputs[0].shape)))
    return graph.tracks.combine(operands, inputs.ndim)


def unknown(graph: ChannelGraph, call: Call) -> Labels:
    """Freeze all channels that an unknown operator reads."""
    graph.freeze(*call.tensors())
    return Labels()


_ELEMENTWISE = frozenset(
    [
        "clone",
        "alias",
        "detach",
        "contiguous",
        "_to_copy",
        "to",
        "lift_fresh",
        "dropout",
        "native_dropout",
        "masked_fill",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "relu6",
        "mish",
        "softplus",
        "celu",
        "selu",
        "elu",
        "leaky_relu",
        "prelu",
        "_prelu_kernel",
    ]
)
"""Elementwise operators without torch's tag ``pointwise``."""
RULES: Mapping[str, Rule] = {**SHAPE_RULES, **PRODUCT_RULES, **NORM_RULES, "glu": gated}


class ChannelTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every operator that runs."""

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.unknown: set[str] = set()
        """Operators without a rule that channels went into."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and label its outputs."""
        result = func(*args, **(kwargs or {}))
        members = result if isinstance(result, list | tuple) else (result,)
        outputs = tuple(member for member in members if isinstance(member, Tensor))
        if outputs:
            self._label(Call(func, args, kwargs or {}, outputs))
        return result

    def _label(self, call: Call) -> None:
        graph = self.graph
        tensors = call.tensors()
        known = [graph.labels(tensor) for tensor in tensors]
        rule = self._rule(call)
        if not any(labels.tracks for labels in known) and not _is_filling(rule, known):
            return
        with torch.utils._python_dispatch._disable_current_modes():
            labels = _applied(rule, graph, call)
        results = [labels] * len(call.outputs) if isinstance(labels, Labels) else labels
        for output, result in zip(call.outputs, results, strict=True):
            fits = all(track.ndim == output.ndim for track in result.tracks)
            graph.set_labels(output, result if fits else Labels())

    def _rule(self, call: Call) -> Rule:
        if (rule := RULES.get(call.operator)) is not None:
            return rule
        if torch.Tag.pointwise in call.function.tags or call.operator in _ELEMENTWISE:
            return elementwise
        if any(self.graph.labels(tensor).tracks for tensor in call.tensors()):
            self.unknown.add(call.operator)
        return unknown


def _applied(rule: Rule, graph: ChannelGraph, call: Call) -> Labels | list[Labels]:
    """Return the labels by a rule; arguments that it does not know freeze their channels."""
    try:
        return rule(graph, call)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return unknown(graph, call)


def _is_filling(rule: Rule, known: list[Labels]) -> bool:
    return rule is RULES["zeros"] or (bool(known) and all(labels.uniform for labels in known))


def trace_channels(module: nn.Module, batch: Mapping[str, Tensor]) -> ChannelGraph:
    """Run a module once and return the dependencies of its channels.

    Args:
        module: the module, in eval mode.
        batch: inputs by the names of ``forward``'s arguments.
    """
    graph = ChannelGraph(module)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer
    called: set[nn.Module] = set()
    handles = [
        layer.register_forward_hook(lambda layer, *_: called.add(layer))
        for layer in module.modules()
    ]
    try:
        with torch.no_grad(), ChannelTracer(graph):
            freeze_outputs(graph, module(**batch))
        if _has_other_weights(module, called):
            _trace_training(graph, module, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return graph


def _has_other_weights(module: nn.Module, called: set[nn.Module]) -> bool:
    """Return True if layers that were not called have weights that no called layer shares."""
    layers = _layers_with_weights(module)
    used = {id(weight) for layer in layers if layer in called for weight in layer.parameters()}
    return any(id(weight) not in used for layer in layers for weight in layer.parameters())


def _layers_with_weights(module: nn.Module) -> list[nn.Module]:
    """Return the layers of which a module consists, without those that hold others."""
    return [
        layer
        for layer in module.modules()
        if not any(layer.children()) and any(True for _ in layer.parameters(recurse=False))
    ]


def _trace_training(graph: ChannelGraph, module: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Add the dependencies of training mode, in which auxiliary heads run as well.

    A module that does not run in this mode cannot be trained, and keeps the dependencies of
    evaluation mode.
    """
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = {layer: layer.training for layer in module.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), ChannelTracer(graph):
            freeze_outputs(graph, module.train()(**batch))
    except Exception:  # noqa: BLE001  the user's code may raise anything
        return
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        module.load_state_dict(state)


def freeze_outputs(graph: ChannelGraph, outputs: Any) -> None:
    """Freeze the channels of the model's outputs, at any depth of tuples and mappings."""
    if isinstance(outputs, Tensor):
        graph.freeze(outputs)
    elif isinstance(outputs, Mapping):
        freeze_outputs(graph, list(outputs.values()))
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            freeze_outputs(graph, output)
