"""Count the operations of a module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def count_flops(module: nn.Module, *, with_scores: bool = False) -> Iterator[FlopCounterMode]:
    """Count the operations of runs of a module within the block, without gradients.

    Recurrent layers count whether torch computes them step by step or, on a CPU, by one operator.
    The parameters require no gradients within the block: where one is the argument of a submodule,
    as tables of relative positions are, torch's counter fails for the lack of a gradient function.

    Args:
        module: the module that is run.
        with_scores: True to compute attention as products, which count; torch's counter does not
            know the operators for attention, and for whole layers of it, on a CPU.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path and not with_scores)
    products = sdpa_kernel(SDPBackend.MATH) if with_scores else nullcontext()
    counting = FlopCounterMode(display=False, custom_mapping=_FLOPS)
    try:
        with torch.no_grad(), products, counting as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trained:
            parameter.requires_grad_(True)


def _recurrent_flops(
    input_shape: Sequence[int],
    input_weight_shape: Sequence[int],
    hidden_weight_shape: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Return the operations of one recurrent layer in one direction.

    Args:
        input_shape: [length, batch, width], in any order.
        input_weight_shape: [gates · hidden, width].
        hidden_weight_shape: [gates · hidden, hidden].
    """
    steps = math.prod(input_shape[:-1])
    return 2 * steps * (math.prod(input_weight_shape) + math.prod(hidden_weight_shape))


_FLOPS = {torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops}
"""Operator that torch's counter does not know to the function that counts it."""
