"""What every pass that uses torch does first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.engine.contract import PassContext
from compressor.errors import UsageError

if TYPE_CHECKING:
    import torch


def prepare_torch(context: PassContext) -> torch.device:
    """Seed, set the threads, and return the device.

    Raises:
        UsageError: the device is not there.
    """
    import torch

    if context.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here", remedy="use --device cpu")
    torch.manual_seed(context.seed)
    torch.set_num_threads(context.threads)
    return torch.device(context.device)
