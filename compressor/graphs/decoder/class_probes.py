"""Norms, activations and rotations of a class, identified by what they compute on random values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graphs.decoder.activations import Activation

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_NEIGHBOURS, _HALVES = (-1.0, 0.0, -3.0, 2.0), (-2.0, -3.0, 0.0, 1.0)
ACTIVATION_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


def identify_norm(norm: nn.Module) -> tuple[Literal["rms", "layer"], float, float] | None:
    """Return kind, epsilon, and the value added to the weight, of a norm over the last axis.

    Args:
        norm: a module whose parameters may be on the device ``meta``.

    Returns:
        None if it computes neither RMSNorm nor LayerNorm.
    """
    epsilon = next((float(getattr(norm, n)) for n in _EPSILONS if hasattr(norm, n)), 1e-5)
    real = deepcopy(norm).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    for parameter in real.parameters():
        parameter.data = 1 + 0.5 * torch.randn(parameter.shape, generator=generator)
    weight: Any = getattr(real, "weight", None)
    shape = tuple(getattr(real, "normalized_shape", (8,)) if weight is None else weight.shape)
    # Small values, so that epsilon matters.
    x = 3 * epsilon**0.5 * (torch.randn(2, *shape, generator=generator) + 1)
    try:
        with torch.no_grad():
            expected = real(x)
            for kind in ("rms", "layer"):
                for offset in (0.0, 1.0):
                    actual = _compute_norm(x, real, kind, epsilon, offset)
                    if torch.allclose(actual, expected, rtol=1e-4, atol=1e-5):
                        return kind, epsilon, offset
    except (RuntimeError, TypeError):
        return None
    return None


def _compute_norm(x: Tensor, norm: nn.Module, kind: str, epsilon: float, offset: float) -> Tensor:
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    x = x if weight is None else x * (weight + offset)
    return x if bias is None else x + bias


def identify_activation(module: nn.Module) -> Activation | None:
    """Return the activation that a module computes; None if it is not a known one."""
    if type(module).__name__ == "XIELUActivation":
        return "xielu"
    x = torch.linspace(-5, 5, 101)
    try:
        with torch.no_grad():
            expected = module(x)
    except (RuntimeError, TypeError):
        return None
    for name, function in ACTIVATION_FUNCTIONS.items():
        if torch.allclose(function(x), expected, rtol=1e-5, atol=1e-6):
            return name
    return None


def rotates_neighbours(attention: nn.Module) -> bool:
    """Return True if the class of an attention rotates neighbouring values, not halves of a head.

    Its module's own function is run on 0, 1, 2, 3.
    """
    source = sys.modules[type(attention).__module__]
    rotate = getattr(source, "rotate_half", None) or getattr(source, "rotate_every_two", None)
    if rotate is None:
        return False
    rotated = rotate(torch.arange(4.0).view(1, 1, 1, 4)).flatten().tolist()
    return tuple(rotated) == _NEIGHBOURS
