"""Layer by layer, what goes in and what comes out while samples run through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibration.observers import Observer

See = Callable[[str, Tensor], None]
Before = Callable[[str, tuple[Any, ...]], None]
"""(name, positional inputs) of a module that is about to run."""
After = Callable[[str, tuple[Any, ...], Any], None]
"""(name, positional inputs, result) of a module that has run."""


@contextmanager
def hooked(
    module: nn.Module,
    names: Iterable[str],
    *,
    before: Before | None = None,
    after: After | None = None,
) -> Iterator[None]:
    """While it lasts, ``before`` and ``after`` are called around every call of the submodules of these names."""
    handles = []

    def hook(name: str) -> None:
        one = module.get_submodule(name)
        if before is not None:
            handles.append(one.register_forward_pre_hook(lambda _, inputs: before(name, inputs)))
        if after is not None:
            handles.append(
                one.register_forward_hook(lambda _, inputs, result: after(name, inputs, result))
            )

    try:
        for name in names:
            hook(name)
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_watched(
    module: nn.Module, layers: Mapping[str, bool], run: Callable[[], Any], see: See
) -> None:
    """``run()``, with ``see("<layer>:input", x)`` at every call of a layer, and ``see("<layer>:output", y)`` where asked for.

    Args:
        module: holds the layers.
        layers: name to whether its result is wanted too.
        run: runs the module.
        see: gets each tensor.
    """

    def look(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        see(f"{name}:input", inputs[0].detach())
        if layers[name]:
            see(f"{name}:output", output.detach())

    with hooked(module, layers, after=look), torch.inference_mode():
        run()


def counting(values: Tensor, meant: Tensor | None) -> Tensor:
    """Of values [B, T, ...], those at the positions [B, T] that count, [P, ...]; all of values of other shapes."""
    return values if meant is None or values.shape[:2] != meant.shape else values[meant]


class Ranges:
    """An observer for each tensor, made when it is first seen; what is wrong with tensors is kept to be told together."""

    def __init__(self, make: Callable[[], Observer]) -> None:
        self.make = make
        self.observers: dict[str, Observer] = {}
        self.not_finite: dict[str, str] = {}
        self.meant: Tensor | None = None
        """Of the batch that runs: which positions count, bool [B, T]; None where all do."""

    def see(self, name: str, values: Tensor) -> None:
        """A tensor of any shape, observed as a whole where it counts."""
        values = counting(values, self.meant)
        one = self.observers.setdefault(name, self.make())
        try:
            one.see(values.reshape(1, -1).cpu())
        except ValueError as error:
            self.not_finite[name] = str(error)
