"""Parameters and MACs as functions of sizes, from the shapes of tensors; no model is built.

For discovered axes, whose family counts by building the model: that takes too long for a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compressor.models.capabilities.flop_counting import count_flops
from passes.prune.allocation import Cost, Width
from passes.prune.model import PrunableModel
from passes.prune.size_search import count_macs, count_parameters


@dataclass(frozen=True, slots=True)
class ShapeCosts:
    """Costs of the whole model by tensor, in proportion to the tensor's elements."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor of the state dict."""
    parameters: Mapping[str, float]
    """Parameters by tensor; tied ones under one name."""
    macs: Mapping[str, float]
    """Multiply-accumulates of the products with a tensor; those without one under ``""``."""

    def counted(self, values: Mapping[str, float], widths: Sequence[Width]) -> Cost:
        """Return the sum of values by tensor as a function of the units kept of each width.

        A search asks for thousands of sizes that differ in one width, so the tensors that depend on
        the same widths are summed once for each combination of their sizes.
        """
        removed, layers = _cuts(widths), _layers(widths)
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in values:
            labels = {width.label for width, _, _ in removed.get(name, ())}
            labels |= {width.label for prefix, width in layers.items() if name.startswith(prefix)}
            groups.setdefault(tuple(sorted(labels)), []).append(name)
        sums: dict[tuple[tuple[str, ...], tuple[int, ...]], float] = {}

        def group_sum(labels: tuple[str, ...], sizes: Mapping[str, int]) -> float:
            key = (labels, tuple(sizes[label] for label in labels))
            if key not in sums:
                sums[key] = sum(
                    values[name] * self._kept_part(name, sizes, removed, layers)
                    for name in groups[labels]
                )
            return sums[key]

        return lambda sizes: sum(group_sum(labels, sizes) for labels in groups)

    def _kept_part(
        self,
        name: str,
        sizes: Mapping[str, int],
        removed: Mapping[str, list[tuple[Width, int, int]]],
        layers: Mapping[str, Width],
    ) -> float:
        """Return the part of a tensor's elements that is left."""
        part = 1.0
        if name in removed:
            shape = list(self.shapes[name])
            for width, dim, indices in removed[name]:
                shape[dim] -= (width.units - sizes[width.label]) * indices
            part = math.prod(shape) / math.prod(self.shapes[name])
        for prefix, width in layers.items():
            if name.startswith(prefix):
                part *= sizes[width.label] / width.units
        return part


def _cuts(widths: Sequence[Width]) -> dict[str, list[tuple[Width, int, int]]]:
    """Return by tensor the widths that cut it, with the dimension and the indices per unit."""
    cuts: dict[str, list[tuple[Width, int, int]]] = {}
    for width in widths:
        for axis in width.axes:
            for cut in axis.cuts:
                indices = width.axis_units(axis, 1) * cut.block * cut.segments
                cuts.setdefault(cut.tensor, []).append((width, cut.dim, indices))
    return cuts


def _layers(widths: Sequence[Width]) -> dict[str, Width]:
    return {
        f"{axis.stack}.{member}.": width
        for width in widths
        for axis in width.axes
        if axis.stack
        for member in axis.members(range(axis.units))
    }


def shape_costs(model: PrunableModel) -> ShapeCosts:
    """Return the costs of a model, which together equal those that its family counts."""
    state = model.module.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.nn.Parameter):
            first_names.setdefault(id(tensor), name)
    elements = {name: float(math.prod(shapes[name])) for name in first_names.values()}
    total = count_parameters(model.family, model.config)
    parameters = elements | {"": total - sum(elements.values())}
    return ShapeCosts(shapes | {"": ()}, parameters, _macs_by_tensor(model, elements))


def _macs_by_tensor(model: PrunableModel, elements: Mapping[str, float]) -> dict[str, float]:
    """Return the family's MACs, divided among tensors as the operators of one run are."""
    flops = _flops_by_module(model)
    total = count_macs(model.family, model.config)
    scale = total / max(sum(flops.values()), 1)
    macs: dict[str, float] = {}
    for name, module in model.module.named_modules():
        if name == "" or not flops.get(name):
            continue
        # A module may multiply with the weights of children that it never calls, as attention does.
        idle = [child for child, _ in module.named_children() if not flops.get(f"{name}.{child}")]
        matrices = [
            f"{name}.{part}"
            for part, weight in module.named_parameters()
            if weight.ndim > 1 and part.rpartition(".")[0] in {"", *idle}
        ]
        matrices = [matrix for matrix in matrices if matrix in elements]
        weight_sum = sum(elements[matrix] for matrix in matrices)
        for matrix in matrices:
            part = scale * flops[name] * elements[matrix] / weight_sum
            macs[matrix] = macs.get(matrix, 0.0) + part
    return macs | {"": max(total - sum(macs.values()), 0.0)}


def _flops_by_module(model: PrunableModel) -> dict[str, int]:
    """Return the operations of one run by module, without those of its children."""
    uses_fast_path = torch.backends.mha.get_fastpath_enabled()  # one operator, which nobody counts
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with count_flops(model.module) as counter:
            model.module(**model.batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(uses_fast_path)
    root = type(model.module).__name__
    flops = {
        name.removeprefix(root).removeprefix("."): sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    own = dict(flops)
    for name in flops:
        parent = name.rpartition(".")[0]
        while name and parent and parent not in flops:
            parent = parent.rpartition(".")[0]
        if name and parent in own:
            own[parent] -= flops[name]
    return {name: max(count, 0) for name, count in own.items()}
