"""Quantizable layers, discovered from the exported graph of a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from compressor.models.capabilities.quantizable_layers import LayerContext, QuantizableLayers
from compressor.models.quantized.fake_quantization import LAYERS

_aten = torch.ops.aten
_MULTIPLIES = {
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.linear.default,
}
_NORMALIZES = {_aten.batch_norm.default}
_CLIPS = {
    _aten.relu.default,
    _aten.relu_.default,
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
}
"""What a runtime folds into the rounding of its result, where that starts at 0."""
_MOVES = {
    getattr(_aten, name).default
    for name in (
        "view",
        "reshape",
        "permute",
        "unsqueeze",
        "contiguous",
        "clone",
        "dropout",
        "constant_pad_nd",
        "alias",
    )
} | {
    _aten.transpose.int,
    _aten.flatten.using_ints,
    _aten.squeeze.dim,
    _aten.pad.default,
    _aten.max_pool2d.default,
    _aten.to.dtype,
    _aten._to_copy.default,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.mean.dim,
    _aten.expand.default,
}
"""What leaves the sign of every value as it is."""
_NEVER_NEGATIVE = _CLIPS | {
    _aten.sigmoid.default,
    _aten.hardsigmoid.default,
    _aten.softmax.int,
    _aten.abs.default,
    _aten.exp.default,
    _aten.gt.Scalar,
    _aten.gt.Tensor,
    _aten.ge.Scalar,
    _aten.eq.Scalar,
    _aten.ne.Scalar,
}
_PADS = {_aten.constant_pad_nd.default: 2, _aten.pad.default: 3}
"""Which argument, if there is one, is what it pads with."""
_TOGETHER = {_aten.mul.Tensor, _aten.add.Tensor, _aten.cat.default}
"""Never negative where all that goes in is not."""


class TracedLayers(QuantizableLayers):
    """The linear and convolutional layers of a module whose weights nothing else uses."""

    def __init__(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """Trace a module in eval mode on two samples, by the names of ``forward``'s arguments."""
        with torch.no_grad():
            program = torch.export.export(module, (), dict(inputs), strict=False)
        self._entering = _first_inputs(module, inputs)
        modules = dict(module.named_modules())
        uses = Counter(
            id(one) for holder in modules.values() for one in holder.parameters(recurse=False)
        )
        calls: dict[str, list[Node]] = {}
        for node in program.graph.nodes:
            if node.target in _MULTIPLIES:
                calls.setdefault(_module_of(node), []).append(node)
        self._calls = {
            name: nodes
            for name, nodes in calls.items()
            if isinstance(layer := modules.get(name), LAYERS) and uses[id(layer.weight)] == 1
        }
        self.left_out = tuple(name for name in calls if name and name not in self._calls)
        """Modules that multiply by a weight that others use too, or that is no layer's own."""
        self.names = tuple(self._calls)
        """In the order of the graph."""

    def contexts(self, quantized: Collection[str]) -> dict[str, LayerContext]:
        """Return the use of every layer if the layers ``quantized`` are computed with integers."""
        layers = {node for name in quantized for node in self._calls[name]}
        return {name: self._context(nodes, layers) for name, nodes in self._calls.items()}

    def _context(self, nodes: list[Node], layers: set[Node]) -> LayerContext:
        norm, results = _results(nodes)
        around = {self._adding_module(node, layers) for node in nodes}
        return LayerContext(
            norm,
            all(_is_nonnegative(node.args[0]) for node in nodes),
            all(self._only_read_by(node, layers) for node in results),
            all(node.users and all(_is_clip(user) for user in node.users) for node in results),
            around.pop() if len(around) == 1 else None,
        )

    def _adding_module(self, node: Node, layers: set[Node]) -> str | None:
        """The module in which the layer's input is added to another layer's result, if it is that module's first input."""
        value = node.args[0]
        if not isinstance(value, Node):
            return None
        for user in value.users:
            if user.target in {_aten.add.Tensor, _aten.add_.Tensor}:
                others = [one for one in user.args[:2] if one is not value]
                inside = _module_of(user)
                enters = (
                    inside in self._entering
                    and self._entering[inside] is self._entering[_module_of(node)]
                )
                if inside and enters and others and _is_result(others[0], layers):
                    return inside
        return None

    def _only_read_by(self, node: Node, layers: set[Node]) -> bool:
        """Whether every user is one of the layers, maybe behind a ReLU and what only moves values."""
        if not node.users:
            return False
        if any(
            user in layers and user.args[0] is node and self._adding_module(user, layers)
            for user in node.users
        ):
            return True  # where it enters that module
        return all(
            (user in layers and user.args[0] is node)
            or (
                (_is_clip(user) or user.target in _MOVES - {_aten.mean.dim})
                and self._only_read_by(user, layers)
            )
            for user in node.users
        )


def _first_inputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first positional input of the last call of each submodule that is given one."""
    first: dict[str, Tensor] = {}

    def record(name: str, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            first[name] = args[0]

    handles = [
        submodule.register_forward_pre_hook(lambda _, args, name=name: record(name, args))
        for name, submodule in module.named_modules()
    ]
    try:
        with torch.no_grad():
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return first


def _results(nodes: list[Node]) -> tuple[str | None, list[Node]]:
    """The batch normalization after all calls of a layer, and what comes out in the end."""
    norms = {_norm_after(node) for node in nodes}
    norm = norms.pop() if len(norms) == 1 else None
    return norm, [next(iter(node.users)) if norm is not None else node for node in nodes]


def _is_result(value: Any, layers: set[Node]) -> bool:
    """Whether a value is what one of the layers says, maybe normalized."""
    if isinstance(value, Node) and value.target in _NORMALIZES:
        value = value.args[0]
    return value in layers


def _module_of(node: Node) -> str:
    """The name of the innermost module that made the node; it has a number where it is called again."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path: str = list(stack.values())[-1][0]
    return path.partition("@")[0]


def _norm_after(node: Node) -> str | None:
    users = list(node.users)
    return _module_of(users[0]) if len(users) == 1 and users[0].target in _NORMALIZES else None


def _is_nonnegative(value: Any) -> bool:
    if not isinstance(value, Node):
        return isinstance(value, int | float) and value >= 0
    if value.target in _NEVER_NEGATIVE:
        return value.target not in _CLIPS or _is_clip(value)
    if value.target in _PADS:
        return _is_nonnegative(value.args[0]) and all(
            _is_nonnegative(one) for one in value.args[_PADS[value.target] :]
        )
    if value.target in _MOVES:
        return _is_nonnegative(value.args[0])
    if value.target in _TOGETHER:
        return all(
            _is_nonnegative(one) for one in (*_operands(value), value.kwargs.get("alpha", 1))
        )
    return False


def _is_clip(node: Node) -> bool:
    """Whether it cuts off what is negative, and nothing that is not but at the top."""
    if node.target in {_aten.hardtanh.default, _aten.hardtanh_.default}:
        return len(node.args) > 1 and bool(node.args[1] == 0)
    return node.target in _CLIPS


def _operands(node: Node) -> Iterator[Any]:
    for one in node.args[:2] if node.target is not _aten.cat.default else node.args[:1]:
        yield from one if isinstance(one, list | tuple) else (one,)
