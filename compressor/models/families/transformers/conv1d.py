"""``Conv1D`` of transformers as linear layers: GPT-2 stores its matrices as [inputs, outputs].

Passes that work on ``nn.Linear`` then quantize them like any other layer. Shapes: I inputs, O
outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn


def replace_conv1d(module: nn.Module) -> frozenset[str]:
    """Replace every ``Conv1D`` in a module by a linear layer of the same function, in place.

    Returns:
        The weights that the class has as [inputs, outputs], by name.
    """
    # A module that has such a layer has imported its class; no other module waits for the import.
    library = sys.modules.get("transformers.pytorch_utils")
    if library is None:
        return frozenset()
    names = [name for name, child in module.named_modules() if isinstance(child, library.Conv1D)]
    for name in names:
        layer = module.get_submodule(name)
        weight_IO, bias_O = layer.get_parameter("weight"), layer.get_parameter("bias")
        inputs, outputs = weight_IO.shape
        linear = nn.Linear(inputs, outputs, device="meta").train(layer.training)
        linear.weight = nn.Parameter(weight_IO.detach().T.contiguous(), weight_IO.requires_grad)
        linear.bias = nn.Parameter(bias_O.detach(), bias_O.requires_grad)
        module.set_submodule(name, linear)
    return frozenset(f"{name}.weight" for name in names)


def transpose(
    tensors: Mapping[str, Tensor], names: frozenset[str], prefix: str
) -> dict[str, Tensor]:
    """Return tensors with those in ``names`` transposed.

    Args:
        tensors: by name behind ``prefix``.
        names: full names.
        prefix: of the tensors' names.
    """
    return {
        name: value.T.contiguous() if f"{prefix}{name}" in names else value
        for name, value in tensors.items()
    }
