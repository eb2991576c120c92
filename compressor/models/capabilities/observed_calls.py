"""Calls of a block's modules while a batch runs, with the memory that their tensors lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RunBlock = Callable[[], Any]
"""Runs a batch through a block and returns the block's output."""
TensorKey = tuple[int, ...]
"""Equal for tensors that hold the same values in the same memory, whatever their leading axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a module."""

    name: str
    """Name in the block; empty for the block itself."""
    module: nn.Module
    input: Tensor | None
    """First tensor among the arguments."""
    input_key: TensorKey | None
    output: Any
    output_key: TensorKey | None
    """Key of the output; of its first entry, where it is a tuple."""
    is_linear: bool
    """True for a linear layer that computed nothing but the product and the bias."""

    @property
    def is_unwritten(self) -> bool:
        """True if neither the input nor the output has been written to after the call."""
        kept = (self.input is None or isinstance(self.module, nn.Linear)) or (
            tensor_key(self.input) == self.input_key
        )
        return (
            kept
            and isinstance(self.output, Tensor)
            and (tensor_key(self.output) == self.output_key)
        )


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """Calls of one run, in the order in which they ended, and the result."""

    calls: tuple[Call, ...]
    result: Any


@torch.no_grad()
def observe_calls(block: nn.Module, run: RunBlock) -> ObservedRun:
    """Run a batch and record every call of a submodule.

    All tensors are kept until the end, so that no two share their memory by accident. Inputs of
    linear layers are copied: later operations may overwrite them in place.
    """
    calls: list[Call] = []
    started: list[tuple[Tensor | None, TensorKey | None]] = []
    kept: list[Tensor] = []
    handles = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        value = next(tensors_in((args, kwargs)), None)
        key = None if value is None else tensor_key(value)
        if value is not None and isinstance(module, nn.Linear):
            kept.append(value)
            value = value.clone()
        started.append((value, key))

    def after(name: str, module: nn.Module, output: Any) -> None:
        value, key = started.pop()
        first = output[0] if isinstance(output, tuple) and output else output
        output_key = tensor_key(first) if isinstance(first, Tensor) else None
        is_linear = (
            isinstance(module, nn.Linear)
            and value is not None
            and _is_product(module, value, output)
        )
        calls.append(Call(name, module, value, key, output, output_key, is_linear))

    def register(name: str, module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(
            module.register_forward_hook(lambda module, _, output: after(name, module, output))
        )

    try:
        for name, module in block.named_modules():
            register(name, module)
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return ObservedRun(tuple(calls), result)


def _is_product(linear: nn.Linear, value: Tensor, output: Any) -> bool:
    """Return True if an output is that of ``nn.Linear``; subclasses may compute something else."""
    if not isinstance(output, Tensor) or output.shape[-1] != linear.out_features:
        return False
    if type(linear).forward is nn.Linear.forward:
        return True
    expected = nn.functional.linear(value, linear.weight, linear.bias)
    return output.shape == expected.shape and torch.allclose(output, expected, 1e-4, 1e-5)


def tensor_key(value: Tensor) -> TensorKey:
    """Return the memory of a tensor, its number of writes in place, and its last axis."""
    version = 0 if value.is_inference() else value._version
    place = (value.untyped_storage().data_ptr(), int(value.storage_offset()), version)
    if value.is_contiguous():
        return (*place, value.numel(), int(value.shape[-1]) if value.ndim else 1)
    return (*place, *value.shape, *value.stride())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_in(entry)


def float_tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors of a result."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]
