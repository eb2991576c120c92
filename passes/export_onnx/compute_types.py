"""Type that a traced model computes in: float32, unless its code casts to types of its own."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from compressor.data.contract import Batch
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.loading import load_module

_HALF_TYPES = {torch.float16, torch.bfloat16}


@torch.inference_mode()
def in_float32(module: nn.Module, model: ModelDescription, batch: Batch) -> nn.Module:
    """Return a module of a model folder in float32, where it can compute so.

    A module whose code casts to another type, or whose inputs have one, keeps its types.

    Args:
        module: the module; it is converted in place.
        model: its folder.
        batch: samples with the dtypes of the inputs.
    """
    if _float_types(module) <= {torch.float32}:
        return module
    module.float()
    try:
        module(**{name: torch.from_numpy(array.copy()) for name, array in batch.items()})
    except RuntimeError:
        return load_module(model)
    return module


def computes_in_half(module: nn.Module) -> bool:
    """Return True if a module has weights of 16 bits."""
    return not _HALF_TYPES.isdisjoint(_float_types(module))


def computes_in_bfloat16(module: nn.Module) -> bool:
    """Return True if a module has weights of bfloat16."""
    return torch.bfloat16 in _float_types(module)


def _float_types(module: nn.Module) -> set[torch.dtype]:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
