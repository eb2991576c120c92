"""Scales of a site's input folded into the layers around it: its source, and its readers.

Shapes: I inputs of the site, R rows or values of the source that compute them, O its outputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.capabilities.linear_groups import Source


def fold_scale(
    layer: nn.Module, source: Source, scale_I: Tensor, dtype: torch.dtype = torch.float32
) -> None:
    """Divide the channels of a site's input by ``scale_I`` where they are computed, in place.

    The weights of the layers in ``source.other_readers``, which read the input too, are multiplied.

    Args:
        layer: the block that holds the modules.
        source: the norm or linear layer that computes the input.
        scale_I: positive; equal for inputs that come from the same row.
        dtype: dtype that vectors are rounded to.
    """
    multiply_other_readers(layer, source, scale_I)
    module: Any = layer.get_submodule(source.module)
    if source.kind == "norm":
        offset, scale_R = source.offset, scale_of_rows(scale_I, source)
        module.weight.data = ((module.weight + offset) / scale_R - offset).to(dtype).float()
        if getattr(module, "bias", None) is not None:
            module.bias.data = (module.bias / scale_R).to(dtype).float()
        return
    divisors_O = divisors_of_rows(layer, source, scale_I)
    divide_bias(layer, source, divisors_O, dtype)
    module.weight.data = module.weight / divisors_O.unsqueeze(1)


def multiply_other_readers(layer: nn.Module, source: Source, scale_I: Tensor) -> None:
    """Multiply the weights of the linear layers beside the site's that read the same channels."""
    for name, first in source.other_readers:
        reader = cast("nn.Linear", layer.get_submodule(name))
        reader.weight.data[:, first : first + len(scale_I)] *= scale_I


def divide_bias(
    layer: nn.Module, source: Source, divisors_O: Tensor, dtype: torch.dtype = torch.float32
) -> None:
    """Divide the bias of a linear source, if it has one, and round it to ``dtype``."""
    module = cast("nn.Linear", layer.get_submodule(source.module))
    if module.bias is not None:
        module.bias.data = (module.bias / divisors_O).to(dtype).float()


def divisors_of_rows(layer: nn.Module, source: Source, scale_I: Tensor) -> Tensor:
    """Return the divisor of each row of a linear source, [O]; 1 for rows that are no source."""
    module = cast("nn.Linear", layer.get_submodule(source.module))
    scale_R = scale_of_rows(scale_I, source)
    divisors_O = torch.ones(module.out_features)
    if source.rows:
        divisors_O[list(source.rows)] = scale_R
    else:
        divisors_O[-len(scale_R) :] = scale_R
    return divisors_O


def scale_of_rows(scale_I: Tensor, source: Source) -> Tensor:
    """Return one value for each row or value of ``source``, [R]."""
    if source.repeats == 1:
        return scale_I
    return scale_I.view(-1, source.repeats, source.block)[:, 0].reshape(-1)


def expand_rows(scale_R: Tensor, source: Source) -> Tensor:
    """Return the value of each input channel of the site, [I]; inverts ``scale_of_rows``."""
    if source.repeats == 1:
        return scale_R
    blocks = scale_R.view(-1, 1, source.block).expand(-1, source.repeats, -1)
    return blocks.reshape(-1)
