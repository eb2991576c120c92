"""Batch normalizations that were folded into the layers before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NORMALIZES = (functional.batch_norm, torch.batch_norm)
_PLAIN = nn.modules.batchnorm._BatchNorm.forward


def without_norm(norm: nn.Module) -> nn.Module:
    """Return what is left of a batch normalization once it is folded.

    That is nothing for the classes of torch. A subclass may compute more, such as the activation in
    timm's BatchNormAct2d: it keeps that.
    """
    return nn.Identity() if type(norm).forward is _PLAIN else _RestOfNorm(norm)


class _RestOfNorm(nn.Module):
    """A subclass of a batch normalization without the normalization."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            norm.register_parameter(name, None)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            norm.register_buffer(name, None)
        norm.__dict__["track_running_stats"] = False  # or loading a state dict would add a counter
        self.rest = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return what the subclass computes of a normalized input ``x``."""
        with _NormsAsIdentity():
            result: Tensor = self.rest(x)
        return result


class _NormsAsIdentity(TorchFunctionMode):
    """Replaces batch normalization by its input."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the result of a function of torch."""
        del types
        if func in _NORMALIZES:
            return args[0]
        return func(*args, **(kwargs or {}))
