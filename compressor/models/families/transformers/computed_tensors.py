"""Tensors that no file holds, since the class computes them, such as sinusoidal positions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def computed_tensors(module: PreTrainedModel, missing: Iterable[str]) -> dict[str, Tensor]:
    """Return the values of missing tensors that the class itself computes.

    They are those that the class states as not stored (``_keys_to_ignore_on_load_missing``), if
    initializing them twice gives the same values: weights that would be random are left out.

    Args:
        module: the class, its parameters on the device ``meta``.
        missing: names of the tensors that the files do not hold.
    """
    patterns = module._keys_to_ignore_on_load_missing or ()
    values = {}
    for name in missing:
        if not any(re.search(pattern, name) for pattern in patterns):
            continue
        first, second = (_initialize(module, name, seed) for seed in (0, 1))
        if torch.equal(first, second):
            values[name] = first
    return values


def _initialize(module: PreTrainedModel, name: str, seed: int) -> Tensor:
    """Return a tensor as the class initializes it; a buffer as it was created."""
    path, _, key = name.rpartition(".")
    parent = deepcopy(module.get_submodule(path))
    value = getattr(parent, key)
    if not value.is_meta:
        buffer: Tensor = value
        return buffer
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # NaN differs from itself: a tensor that is not initialized does not count as computed.
        setattr(parent, key, nn.Parameter(torch.full(value.shape, torch.nan), requires_grad=False))
        module._init_weights(parent)  # type: ignore[no-untyped-call]
    initialized: Tensor = getattr(parent, key).detach()
    return initialized
