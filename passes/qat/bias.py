"""What rounding shifts on average is put back into the biases.

Shapes: O output channels, N everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calibration.capture import select_valid, forward_hooks
from compressor.models.quantized.fake_quantization import IntegerLayer


@torch.no_grad()
def correct_biases(
    module: nn.Module, teacher: nn.Module, batch: Mapping[str, Tensor], meant: Tensor | None = None
) -> int:
    """Change the bias of each integer layer, in place, such that its result has the mean of the float layer's.

    One pass over one batch: a layer is corrected before what follows reads its result, so that each makes up for what
    those before it left (empirical bias correction, Nagel et al. 2019, section 4.2). Layers without a bias stay as they
    are, and those that are called more than once: what is right for one call is wrong for another.

    Args:
        module: the quantized model, in eval mode.
        teacher: the float one with normalizations folded, in eval mode.
        batch: the model's inputs.
        meant: which of their positions are no padding, bool [B, T]; all without it.

    Returns:
        How many layers were corrected.
    """
    layers = {name: one for name, one in module.named_modules() if isinstance(one, IntegerLayer)}
    wanted: dict[str, list[Tensor]] = {name: [] for name in layers}

    def remember(name: str, _: tuple[Any, ...], result: Tensor) -> None:
        wanted[name].append(_mean(teacher.get_submodule(name), select_valid(result, meant)))

    with forward_hooks(teacher, layers, after=remember):
        teacher(**batch)
    once = {
        name: one
        for name, one in layers.items()
        if len(wanted[name]) == 1 and one.layer.bias is not None
    }

    def correct(name: str, inputs: tuple[Any, ...]) -> None:
        layer = once[name].layer
        shift_O = wanted[name][0] - _mean(layer, select_valid(once[name].product(inputs[0]), meant))
        if layer.bias is not None:
            layer.bias += shift_O

    with forward_hooks(module, once, before=correct):
        module(**batch)
    return len(once)


def _mean(layer: nn.Module, result: Tensor) -> Tensor:
    """Of each output channel: [O]."""
    return result.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).mean(dim=1)
