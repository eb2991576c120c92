"""Layers of a torch model, seen by hooks."""

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
    IntegerEmbedding,
    IntegerLayer,
    Rounding,
)
from compressor.runtimes.layers import Array, Layers, Trace, reshape_like
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.session import TorchSession

_WHOLE = (IntegerLayer, IntegerEmbedding)


class TorchLayers(Layers):
    """A module of a family in eval mode.

    Attributes:
        parts: layer to the modules that it consists of, one after the other; known after a trace.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[InputSpec], outputs: Sequence[str]
    ) -> None:
        self.module, self._inputs, self._outputs = module, inputs, outputs
        self.parts: dict[str, tuple[str, ...]] = {}
        self._modules = dict(module.named_modules())

    @classmethod
    def from_session(cls, session: TorchSession) -> Self:
        """Of an open model."""
        return cls(session.module, session.inputs, session.output_names)

    @torch.inference_mode()
    def trace(self, batch: Batch) -> Trace:
        """See ``Layers.trace``."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        made_by: dict[int, str] = {}
        self.parts = {}
        alive: list[Tensor] = []  # so that no two of them have one id

        def before(name: str, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                inputs[name] = args[0]

        def after(name: str, result: Any) -> None:
            if not isinstance(result, Tensor) or name not in inputs:
                return
            layer = made_by.get(id(inputs[name])) if _follows(self._modules[name]) else None
            if layer is None:
                outputs.pop(name, None)
                self.parts.pop(name, None)
                self.parts[name] = (name,)
            elif name not in self.parts[layer]:
                self.parts[layer] = (*self.parts[layer], name)
            alive.append(result)
            outputs[layer or name] = result
            made_by[id(result)] = layer or name

        with self._hooked(before, after):
            answers = self._answers(batch)
        kept = {name: outputs[name] for name in self.parts if not _follows(self._modules[name])}
        return Trace(
            {name: _array(inputs[name]) for name in kept},
            {name: _array(one) for name, one in kept.items()},
            answers,
        )

    @torch.inference_mode()
    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Layers.alone``."""
        seen = self.trace(batch).inputs
        found = {}
        for name, given in inputs.items():
            if name in seen and (fed := reshape_like(given, seen[name])) is not None:
                value = torch.from_numpy(fed)
                for part in self.parts[name]:
                    value = self._modules[part](value)
                found[name] = _array(value)
        return found

    @contextmanager
    def _hooked(self, before: Any, after: Any) -> Iterator[None]:
        handles = []
        for name, one in self._layers():
            # Ours comes first: a module may have hooks of its own that change its input.
            handles.append(
                one.register_forward_pre_hook(
                    lambda _, args, name=name: before(name, args), prepend=True
                )
            )
            handles.append(
                one.register_forward_hook(lambda _, __, result, name=name: after(name, result))
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        whole = [name for name, one in self._modules.items() if isinstance(one, _WHOLE)]
        for name, one in self._modules.items():
            inside = any(name.startswith(f"{outer}.") for outer in whole)
            if isinstance(one, _WHOLE) or (not inside and _is_leaf(one)):
                yield name, one

    def _answers(self, batch: Batch) -> dict[str, Array]:
        feeds = match_inputs(batch, self._inputs)
        result = self.module(
            **{name: torch.from_numpy(array.copy()) for name, array in feeds.items()}
        )
        return {name: _array(result[name]) for name in self._outputs}


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module holds tensors itself, and no others within but what rounds its input."""
    if isinstance(module, Rounding) or any(
        not isinstance(one, Rounding) for one in module.children()
    ):
        return False
    return _follows(module) or any(
        True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    )


def _follows(module: nn.Module) -> bool:
    """Whether a module belongs to the layer right before it."""
    return isinstance(module, (*NORMS, nn.Identity))


def _array(tensor: Tensor) -> Array:
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
    return np.array(array)
