"""Layers of a torch model, inspected by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.contract import Batch
from compressor.models.capabilities.signature import InputSpec
from compressor.models.quantized.fake_quantization import (
    NORMS,
    FakeQuantizer,
    IntegerEmbedding,
    IntegerLayer,
)
from compressor.runtimes.layers import Array, Layers, Trace, reshape_like
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.session import TorchSession

_COMPOSITE = (IntegerLayer, IntegerEmbedding)
"""Modules that count as one layer although other modules lie inside."""


class TorchLayers(Layers):
    """Layers of a module in eval mode.

    Attributes:
        module: the module.
        parts: layer to its modules in the order of execution, such as a convolution and its batch
            norm; known after ``trace``.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[InputSpec], outputs: Sequence[str]
    ) -> None:
        """Wrap a module.

        Args:
            module: a module in eval mode.
            inputs: its inputs.
            outputs: names of its outputs.
        """
        self.module, self._inputs, self._outputs = module, inputs, outputs
        self.parts: dict[str, tuple[str, ...]] = {}
        self._modules = dict(module.named_modules())

    @classmethod
    def from_session(cls, session: TorchSession) -> Self:
        """Wrap the module of an open session."""
        return cls(session.module, session.inputs, session.output_names)

    @torch.inference_mode()
    def trace(self, batch: Batch) -> Trace:
        """See ``Layers.trace``."""
        recorder = _Recorder(self._modules)
        with self._hooks(recorder):
            outputs = self._run(batch)
        self.parts = recorder.parts
        layers = [name for name in recorder.parts if not _belongs_to_previous(self._modules[name])]
        return Trace(
            {name: _array(recorder.inputs[name]) for name in layers},
            {name: _array(recorder.outputs[name]) for name in layers},
            outputs,
            frozenset(name for name in layers if _starts_at_zero(self._modules[name])),
        )

    @torch.inference_mode()
    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Layers.alone``."""
        own_inputs = self.trace(batch).inputs
        outputs = {}
        for name, array in inputs.items():
            if name not in own_inputs:
                continue
            replacement = reshape_like(array, own_inputs[name])
            if replacement is not None:
                value = torch.from_numpy(replacement)
                for part in self.parts[name]:
                    value = self._modules[part](value)
                outputs[name] = _array(value)
        return outputs

    @contextmanager
    def _hooks(self, recorder: _Recorder) -> Iterator[None]:
        handles = []
        for name, module in self._layer_modules():
            # The recorder's hook runs first: a module may have hooks that change its input.
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: recorder.before(name, args), prepend=True
                )
            )
            handles.append(
                module.register_forward_hook(
                    lambda _, __, result, name=name: recorder.after(name, result)
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layer_modules(self) -> Iterator[tuple[str, nn.Module]]:
        composites = [
            name for name, module in self._modules.items() if isinstance(module, _COMPOSITE)
        ]
        for name, module in self._modules.items():
            is_inside = any(name.startswith(f"{outer}.") for outer in composites)
            if isinstance(module, _COMPOSITE) or (not is_inside and _is_leaf(module)):
                yield name, module

    def _run(self, batch: Batch) -> dict[str, Array]:
        feeds = match_inputs(batch, self._inputs)
        result = self.module(
            **{name: torch.from_numpy(array.copy()) for name, array in feeds.items()}
        )
        return {name: _array(result[name]) for name in self._outputs}


class _Recorder:
    """Inputs, outputs and parts of the layers that one forward pass executes."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.parts: dict[str, tuple[str, ...]] = {}
        self._layer_of: dict[int, str] = {}
        """Id of a tensor to the layer that computed it."""
        self._alive: list[Tensor] = []
        """Keeps the tensors alive, so that their ids stay unique."""

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        """Record a module's input, unless it is a part of a tensor inside `torch.vmap`."""
        if args and isinstance(args[0], Tensor) and not _is_wrapped(args[0]):
            self.inputs[name] = args[0]

    def after(self, name: str, result: Any) -> None:
        """Record a module's output; a batch norm extends the layer that computed its input."""
        if not isinstance(result, Tensor) or _is_wrapped(result) or name not in self.inputs:
            return
        layer = None
        if _belongs_to_previous(self._modules[name]):
            layer = self._layer_of.get(id(self.inputs[name]))
        if layer is None:
            self.outputs.pop(name, None)
            self.parts.pop(name, None)
            self.parts[name] = (name,)
        elif name not in self.parts[layer]:
            self.parts[layer] = (*self.parts[layer], name)
        self._alive.append(result)
        self.outputs[layer or name] = result
        self._layer_of[id(result)] = layer or name


def _is_leaf(module: nn.Module) -> bool:
    """Return True if a module holds tensors, and no modules but fake quantizers of its input."""
    if isinstance(module, FakeQuantizer) or any(
        not isinstance(child, FakeQuantizer) for child in module.children()
    ):
        return False
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _belongs_to_previous(module) or bool(tensors)


def _belongs_to_previous(module: nn.Module) -> bool:
    """Return True if a module counts as part of the layer directly before it."""
    return isinstance(module, (*NORMS, nn.Identity))


def _starts_at_zero(module: nn.Module) -> bool:
    """Return True if a layer's result lies on a grid whose lowest value is 0."""
    grid = module.output_grid if isinstance(module, IntegerLayer) else None
    return grid is not None and grid.grid.lowest == 0


def _is_wrapped(tensor: Tensor) -> bool:
    """Return True for a tensor of `torch.func`, which has no values of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _array(tensor: Tensor) -> Array:
    """Return a copy as an array; bfloat16 becomes float32, which represents it exactly."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
    return np.array(array)
