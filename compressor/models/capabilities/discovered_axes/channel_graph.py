"""Dependencies between the channels of a module's weights, collected while the module runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from compressor.models.capabilities.discovered_axes.labels import Labels, Nodes, Tracks, flat


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer of a module."""

    names: tuple[str, ...]
    """Its names in the state dict; several for tied weights."""
    shape: tuple[int, ...]
    first_nodes: tuple[int, ...]
    """First node of each dimension; the nodes of a dimension are consecutive."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator."""

    function: Any
    """The overload, such as ``torch.ops.aten.mm.default``."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def operator(self) -> str:
        """Name without namespace and overload, and without the underscore of in-place variants."""
        name: str = self.function.overloadpacket.__name__
        return name if name.startswith("_") else name.rstrip("_")

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments, also those in lists."""
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            members = value if isinstance(value, list | tuple) else (value,)
            found += [member for member in members if isinstance(member, Tensor)]
        return found


class ChannelGraph:
    """Labels of all tensors of a run, and what is known about nodes."""

    def __init__(self, module: nn.Module) -> None:
        self.tracks = Tracks()
        self._labels: Any = WeakTensorKeyDictionary()
        self.reads: list[Nodes] = []
        """Nodes of weight columns: a product sums over them."""
        self.heads: list[Nodes] = []
        """Nodes of attention heads."""
        self.convolved: list[Nodes] = []
        """Nodes of channels that a convolution writes."""
        self.tables: list[Nodes] = []
        """Nodes of embeddings, whose rows are looked up."""
        self.weights = tuple(self._label_weights(module))

    def _label_weights(self, module: nn.Module) -> list[Weight]:
        names: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                names.setdefault(id(tensor), []).append(name)
                tensors[id(tensor)] = tensor
        weights = []
        for key, tensor in tensors.items():
            shape = tuple(tensor.shape)
            first_nodes = tuple(self.tracks.sets.add(size) for size in shape)
            weights.append(Weight(tuple(names[key]), shape, first_nodes))
            labels = Labels(weights=True)
            for dim, (size, first) in enumerate(zip(shape, first_nodes, strict=True)):
                if size > 1:
                    form = [1] * len(shape)
                    form[dim] = size
                    labels.tracks.append(torch.arange(first, first + size).view(form))
            self._labels[tensor] = labels
        return weights

    def labels(self, tensor: Any) -> Labels:
        """Return the labels of a tensor; none for inputs and constants."""
        known: Labels | None = self._labels.get(tensor) if isinstance(tensor, Tensor) else None
        return Labels() if known is None else known

    def set_labels(self, tensor: Tensor, labels: Labels) -> None:
        """Set the labels of a result."""
        self._labels[tensor] = labels

    def freeze(self, *tensors: Any) -> None:
        """Freeze all nodes of tensors."""
        for tensor in tensors:
            self.tracks.freeze(*self.labels(tensor).tracks)

    def combine(self, tensors: Sequence[Tensor], rank: int) -> Labels:
        """Return the labels of an elementwise function of tensors; see ``Tracks.combine``."""
        operands = [(self.labels(tensor), tuple(tensor.shape)) for tensor in tensors]
        return self.tracks.combine(operands, rank)

    def mark(self, kind: list[Nodes], track: Tensor) -> None:
        """Add the nodes of a track to one of the lists of this graph."""
        kind.append(flat(track).copy())


Rule = Callable[[ChannelGraph, Call], "Labels | list[Labels]"]
"""Joins nodes as an operator requires, and returns the labels of its outputs: of each, or the same
for all."""
