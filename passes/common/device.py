"""The device and the memory of a process that runs torch."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compressor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from compressor.data.contract import Batch
    from compressor.engine.contract import PassContext


def prepare_torch(context: PassContext) -> torch.device:
    """Seed torch's generator, set its number of threads, and return the device.

    Raises:
        UsageError: The device is ``cuda``, and torch finds no GPU.
    """
    if context.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here", remedy="use --device cpu")
    torch.manual_seed(context.seed)
    torch.set_num_threads(context.threads)
    return torch.device(context.device)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def tensors_from_batch(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Copy the NumPy arrays of a batch to tensors on the device."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for name, array in batch.items()
    }


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Refuse operations on the CPU whose results differ from run to run.

    On a GPU the caller's setting stays: there, determinism also needs environment variables that
    are set before CUDA starts.
    """
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fill_before = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    # Filling new memory protects code that reads it uninitialized, for 4 % of a small model's step.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill_before


def trim_heap() -> None:
    """Return freed memory to the operating system.

    glibc keeps freed blocks that lie between blocks in use until ``malloc_trim`` is called. With
    other C libraries this does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
