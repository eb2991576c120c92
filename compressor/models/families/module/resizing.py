"""Layers of other sizes than those that the module is built with, as pruning leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compressor.errors import ModelError


def resize(module: nn.Module, sizes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Replace tensors of a module by uninitialized ones of other shapes, in place.

    The sizes that layers keep as attributes, such as ``in_features``, follow from the shapes.

    Args:
        module: the module as built.
        sizes: name of a tensor in the state dict to its shape.

    Raises:
        ModelError: the module has no such tensors; the message names them.
    """
    names = module.state_dict().keys()
    if unknown := sorted(sizes.keys() - names):
        raise ModelError(f"`sizes` names tensors that the module lacks: {', '.join(unknown)}")
    for name, shape in sizes.items():
        owner_name, _, attribute = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        tensor = getattr(owner, attribute)
        empty = torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, attribute, nn.Parameter(empty, tensor.requires_grad))
        else:
            setattr(owner, attribute, empty)
    for owner_name in {name.rpartition(".")[0] for name in sizes}:
        _set_attributes(module.get_submodule(owner_name))
    return module


def _set_attributes(layer: nn.Module) -> None:
    """Set the sizes that a layer keeps as attributes from the shapes of its tensors."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.conv._ConvNd):
        _set_channels(layer)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        statistics = layer.running_mean if weight is None else weight
        assert statistics is not None  # noqa: S101 - it has a tensor, whose shape was set
        layer.num_features = len(statistics)
    elif isinstance(layer, nn.LayerNorm) and weight is not None:
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm) and weight is not None:
        # Only whole groups can be cut, so their size stays.
        layer.num_groups = len(weight) * layer.num_groups // layer.num_channels
        layer.num_channels = len(weight)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _set_channels(layer: nn.modules.conv._ConvNd) -> None:
    """Set channels and groups from the weight; of several groups, only whole ones can be cut."""
    rows, columns = layer.weight.shape[:2]
    if layer.groups > 1:
        before = layer.in_channels if layer.transposed else layer.out_channels
        layer.groups = rows * layer.groups // before
    columns *= layer.groups
    layer.out_channels, layer.in_channels = (columns, rows) if layer.transposed else (rows, columns)
