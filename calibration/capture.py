"""Layer by layer, what goes in and what comes out while samples run through a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calibration.observers import Observer

See = Callable[[str, Tensor], None]


def run_watched(module: nn.Module, layers: Mapping[str, bool], run: Callable[[], Any], see: See) -> None:
    """``run()``, with ``see("<layer>:input", x)`` at every call of a layer, and ``see("<layer>:output", y)`` where asked for.

    Args:
        module: holds the layers.
        layers: name to whether its result is wanted too.
        run: runs the module.
        see: gets each tensor.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            see(f"{name}:input", inputs[0].detach())
            if layers[name]:
                see(f"{name}:output", output.detach())

        return look

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()


class Ranges:
    """An observer for each tensor, made when it is first seen; what is wrong with tensors is kept to be told together."""

    def __init__(self, make: Callable[[], Observer]) -> None:
        self.make = make
        self.observers: dict[str, Observer] = {}
        self.not_finite: dict[str, str] = {}

    def see(self, name: str, values: Tensor) -> None:
        """A tensor of any shape, observed as a whole."""
        one = self.observers.setdefault(name, self.make())
        try:
            one.see(values.reshape(1, -1).cpu())
        except ValueError as error:
            self.not_finite[name] = str(error)
