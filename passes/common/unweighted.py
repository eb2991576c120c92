"""Modules without weights, for the names and shapes that a plan checks."""

from __future__ import annotations

import torch
from torch import nn

from compressor.models.architecture import Architecture


def build_without_values(architecture: Architecture) -> tuple[nn.Module, str]:
    """Return a model on the device ``meta`` where that is possible, and its device."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return architecture.family.build(architecture.config), "meta"
        except (RuntimeError, NotImplementedError, ValueError, TypeError):  # it reads values
            return architecture.family.build(architecture.config), "cpu"
