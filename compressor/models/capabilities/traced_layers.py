"""Quantizable layers, discovered from the exported graph of a module."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from compressor.errors import RequirementError
from compressor.models.capabilities.quantizable_layers import LayerContext, QuantizableLayers
from compressor.models.capabilities.windowed_attention import whole_windows
from compressor.models.quantized.fake_quantization import LAYERS

_FORWARDS = {layer.forward for layer in LAYERS}
"""A subclass that computes otherwise, such as on transposed values, is not computed by integers."""
_aten = torch.ops.aten
_PRODUCTS = {
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.linear.default,
}
_NORMS = {_aten.batch_norm.default}
_ADDITIONS = {_aten.add.Tensor, _aten.add_.Tensor}
_CLIPS = {
    _aten.relu.default,
    _aten.relu_.default,
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
}
"""Operators that a runtime folds into the rounding of their input, onto integers from 0."""
_SIGN_PRESERVING = {
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
"""Operators whose output has no negative value if their input has none."""
_NONNEGATIVE = _CLIPS | {
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
"""Operators whose output has no negative value."""
_PADDING_VALUE = {_aten.constant_pad_nd.default: 2, _aten.pad.default: 3}
"""Padding operator to the position of its optional argument with the padding value."""
_COMBINING = {_aten.mul.Tensor, _aten.add.Tensor, _aten.cat.default}
"""Operators whose output has no negative value if none of their inputs has one."""


class TracedLayers(QuantizableLayers):
    """The linear and convolutional layers in the graph of ``torch.export``."""

    def __init__(self, module: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Trace a module.

        Args:
            module: the module, in eval mode.
            batch: at least two samples, by the names of ``forward``'s arguments.

        Raises:
            RequirementError: torch cannot trace the module.
        """
        try:
            windows = whole_windows(module, lambda: module(**batch))
            with torch.no_grad(), warnings.catch_warnings(), windows:
                # Recurrent layers keep a list of their parameters; the graph reads the parameters.
                warnings.filterwarnings("ignore", message="The tensor attribute.*_flat_weights")
                program = torch.export.export(module, (), dict(batch), strict=False)
        except Exception as error:  # torch raises classes of its own and of the traced code
            lines = str(error).splitlines() or ["no details"]
            raise RequirementError(
                f"the layers of {type(module).__name__} cannot be found: torch.export cannot "
                f"trace it ({type(error).__name__}: {lines[0]})",
                remedy="quantize its matrices with `awq`, which does not trace",
            ) from error
        self._first_inputs = _record_first_inputs(module, batch)
        modules = dict(module.named_modules())
        uses = Counter(
            id(parameter)
            for submodule in modules.values()
            for parameter in submodule.parameters(recurse=False)
        )
        calls: dict[str, list[Node]] = {}
        for node in program.graph.nodes:
            if node.target in _PRODUCTS:
                calls.setdefault(_module_name(node), []).append(node)
        self._calls = {
            name: nodes
            for name, nodes in calls.items()
            if isinstance(layer := modules.get(name), LAYERS)
            and uses[id(layer.weight)] == 1
            and type(layer).forward in _FORWARDS
        }
        self.left_out = {
            name: _reason(modules.get(name)) for name in calls if name and name not in self._calls
        }
        self.names = tuple(self._calls)

    def contexts(self, quantized: Collection[str]) -> dict[str, LayerContext]:
        """Return the use of every layer if the layers ``quantized`` are computed with integers."""
        layers = {node for name in quantized for node in self._calls[name]}
        return {name: self._context(nodes, layers) for name, nodes in self._calls.items()}

    def _context(self, nodes: list[Node], layers: set[Node]) -> LayerContext:
        norm, outputs = _outputs(nodes)
        around = {self._residual_module(node, layers) for node in nodes}
        return LayerContext(
            norm=norm,
            nonnegative=all(_is_nonnegative(node.args[0]) for node in nodes),
            rounded=all(self._is_rounded_by_users(node, layers) for node in outputs),
            clipped=all(
                node.users and all(_is_clip(user) for user in node.users) for node in outputs
            ),
            around=around.pop() if len(around) == 1 else None,
        )

    def _residual_module(self, node: Node, layers: set[Node]) -> str | None:
        """Return the module that adds a layer's input to the output of one of ``layers``.

        The input must be the first input of that module; otherwise the result is None.
        """
        value = node.args[0]
        if not isinstance(value, Node):
            return None
        for user in value.users:
            if user.target in _ADDITIONS:
                summands = [argument for argument in user.args[:2] if argument is not value]
                module = _module_name(user)
                is_first_input = module in self._first_inputs and (
                    self._first_inputs[module] is self._first_inputs[_module_name(node)]
                )
                if module and is_first_input and summands and _is_output(summands[0], layers):
                    return module
        return None

    def _is_rounded_by_users(self, node: Node, layers: set[Node]) -> bool:
        """Return True if every user is one of ``layers``, at most behind a ReLU or a reshape."""
        if not node.users:
            return False
        if any(
            user in layers and user.args[0] is node and self._residual_module(user, layers)
            for user in node.users
        ):
            return True  # rounded as the first input of that module
        return all(
            (user in layers and user.args[0] is node)
            or (
                (_is_clip(user) or user.target in _SIGN_PRESERVING - {_aten.mean.dim})
                and self._is_rounded_by_users(user, layers)
            )
            for user in node.users
        )


def _record_first_inputs(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first positional input of the last call of each submodule that has one."""
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
            module(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return first


def _reason(module: nn.Module | None) -> str:
    """Return why a module that multiplies stays in float."""
    if module is None or not isinstance(module, LAYERS):
        return "it multiplies by a weight that is no layer's own"
    if parametrize.is_parametrized(module):
        return "its weight is computed from others, such as by weight normalization"
    if type(module).forward not in _FORWARDS:
        return f"{type(module).__name__} has a `forward` of its own"
    return "its weight is used elsewhere too"


def _outputs(nodes: list[Node]) -> tuple[str | None, list[Node]]:
    """Return the batch normalization after all calls of a layer, and the nodes of its outputs."""
    norms = {_norm_after(node) for node in nodes}
    norm = norms.pop() if len(norms) == 1 else None
    return norm, [next(iter(node.users)) if norm is not None else node for node in nodes]


def _is_output(value: Any, layers: set[Node]) -> bool:
    """Return True if a value is the output of one of ``layers``, normalized or not."""
    if isinstance(value, Node) and value.target in _NORMS:
        value = value.args[0]
    return value in layers


def _module_name(node: Node) -> str:
    """Return the innermost module of a node; torch appends ``@`` and a number to repeated calls."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path: str = list(stack.values())[-1][0]
    return path.partition("@")[0]


def _norm_after(node: Node) -> str | None:
    users = list(node.users)
    return _module_name(users[0]) if len(users) == 1 and users[0].target in _NORMS else None


def _is_nonnegative(value: Any) -> bool:
    if not isinstance(value, Node):
        return isinstance(value, int | float) and value >= 0
    if value.target in _NONNEGATIVE:
        return value.target not in _CLIPS or _is_clip(value)
    if value.target in _PADDING_VALUE:
        paddings = value.args[_PADDING_VALUE[value.target] :]
        return _is_nonnegative(value.args[0]) and all(map(_is_nonnegative, paddings))
    if value.target in _SIGN_PRESERVING:
        return _is_nonnegative(value.args[0])
    if value.target in _COMBINING:
        factors = (*_operands(value), value.kwargs.get("alpha", 1))
        return all(map(_is_nonnegative, factors))
    return False


def _is_clip(node: Node) -> bool:
    """Return True if a node clips at 0 from below, and otherwise only from above."""
    if node.target in {_aten.hardtanh.default, _aten.hardtanh_.default}:
        return len(node.args) > 1 and bool(node.args[1] == 0)
    return node.target in _CLIPS


def _operands(node: Node) -> Iterator[Any]:
    arguments = node.args[:1] if node.target is _aten.cat.default else node.args[:2]
    for argument in arguments:
        yield from argument if isinstance(argument, list | tuple) else (argument,)
