"""Type that a traced model computes in: float32, unless its code casts to types of its own."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from compressor.data.contract import Batch
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.session import TorchSession

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


def outputs_in_float64(session: TorchSession, batch: Batch) -> Batch | None:
    """Return the outputs of a model of float32, computed in float64; None if it cannot do so.

    Args:
        session: the model; it is float32 again afterwards.
        batch: samples.
    """
    if _float_types(session.module) != {torch.float32}:
        return None
    feeds = match_inputs(batch, session.inputs)
    session.module.double()
    try:
        outputs = session.compute(
            {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feeds.items()}
        )
    except Exception:  # noqa: BLE001  code that states a type raises errors of all kinds
        return None
    finally:
        session.module.float()
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def computes_in_half(module: nn.Module) -> bool:
    """Return True if a module has weights of 16 bits."""
    return not _HALF_TYPES.isdisjoint(_float_types(module))


def computes_in_bfloat16(module: nn.Module) -> bool:
    """Return True if a module has weights of bfloat16."""
    return torch.bfloat16 in _float_types(module)


def _float_types(module: nn.Module) -> set[torch.dtype]:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
