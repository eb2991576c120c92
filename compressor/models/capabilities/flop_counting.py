"""Counting of the operations of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def count_flops(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Count the operations of runs of a module within the block, without gradients.

    Its parameters require none within the block: where one is the argument of a submodule, as
    tables of relative positions are, torch's counter fails for the lack of a gradient function.

    Args:
        module: the module that is run.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
