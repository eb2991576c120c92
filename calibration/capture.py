"""Capture the inputs and outputs of layers while samples run through a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibration.observers import Observer
from compressor.models.capabilities.valid_positions import PositionMask

TensorCallback = Callable[[str, Tensor], None]
"""Called with the name of a tensor and its values."""
BeforeForward = Callable[[str, tuple[Any, ...]], None]
"""Called with a module's name and positional inputs, before its ``forward``."""
AfterForward = Callable[[str, tuple[Any, ...], Any], None]
"""Called with a module's name, positional inputs and output, after its ``forward``."""


@contextmanager
def forward_hooks(
    module: nn.Module,
    names: Iterable[str],
    *,
    before: BeforeForward | None = None,
    after: AfterForward | None = None,
) -> Iterator[None]:
    """Call ``before`` and ``after`` around every call of the named submodules, within the block.

    Args:
        module: the module that holds the submodules.
        names: their names, as in ``module.named_modules()``.
        before: called before each submodule runs; None for no such hook.
        after: called after each submodule has run; None for no such hook.
    """
    handles = []

    def register(name: str) -> None:
        submodule = module.get_submodule(name)
        if before is not None:
            handles.append(
                submodule.register_forward_pre_hook(lambda _, inputs: before(name, inputs))
            )
        if after is not None:
            handles.append(
                submodule.register_forward_hook(
                    lambda _, inputs, output: after(name, inputs, output)
                )
            )

    try:
        for name in names:
            register(name)
        yield
    finally:
        for handle in handles:
            handle.remove()


def observe_layers(
    module: nn.Module, layers: Mapping[str, bool], run: Callable[[], Any], observe: TensorCallback
) -> None:
    """Run a model in inference mode and pass the inputs, and optionally outputs, of its layers on.

    Args:
        module: the module that holds the layers.
        layers: layer name to True if its output is observed too.
        run: runs the module, once or several times.
        observe: called as ``observe("<layer>:input", x)``, and as ``observe("<layer>:output", y)``
            for layers whose output is observed, at every call of a layer.
    """

    def report(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        observe(f"{name}:input", inputs[0].detach())
        if layers[name]:
            observe(f"{name}:output", output.detach())

    with forward_hooks(module, layers, after=report), torch.inference_mode():
        run()


def select_valid(
    values: Tensor, mask: PositionMask | None, *, channels_first: bool = False
) -> Tensor:
    """Return the values at valid positions; all of them without a mask.

    Args:
        values: inputs or outputs of a layer.
        mask: the positions of the batch that are not padding; None if all are valid.
        channels_first: True for values of a convolution.
    """
    return values if mask is None else mask.select(values, channels_first=channels_first)


class TensorObservers:
    """One observer per tensor name, created at the first call with that name."""

    def __init__(self, create: Callable[[], Observer], convolutions: Collection[str] = ()) -> None:
        """Store what creates an observer, and the layers whose values have channels first."""
        self.create, self.convolutions = create, convolutions
        self.observers: dict[str, Observer] = {}
        self.not_finite: dict[str, str] = {}
        """Tensor name to the error message, for tensors with NaN or infinite values. Errors are
        collected so that the caller can report all of them at once."""
        self.valid_positions: PositionMask | None = None
        """Mask of the current batch; None if all positions are valid."""

    def observe(self, name: str, values: Tensor) -> None:
        """Update the observer of a tensor with its values at valid positions, as one channel."""
        is_convolution = name.rpartition(":")[0] in self.convolutions
        values = select_valid(values, self.valid_positions, channels_first=is_convolution)
        observer = self.observers.setdefault(name, self.create())
        try:
            observer.observe(values.reshape(1, -1).cpu())
        except ValueError as error:
            self.not_finite[name] = str(error)
