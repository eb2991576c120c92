"""Activations of feed-forward networks that a decoder's graph can compute; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "xielu"]
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""Transformers' names of the activations that a graph can compute."""
