"""Comparison of cut modules with the whole module in which the cut units have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.unit_removal import kept_indices, remove_units

_TOLERANCE = 1e-3
"""Largest difference of outputs, relative to the largest value; sums are taken in another order."""
_HALF_TOLERANCE = 5e-2
"""The same for weights in float16 and bfloat16."""

BuildCut = Callable[[Mapping[str, int], Mapping[str, Tensor]], nn.Module]
"""Builds the smaller module from the units left of each cut axis, by name, and its state dict."""


def verified_axes(
    axes: Sequence[Axis], model: LoadedModel, build: BuildCut
) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """Return the axes whose cut equals a mask, and the reasons why others do not, by trying them.

    All axes are cut at once; where that fails, groups of axes with equal fields are halved until
    the failing ones are found.

    Args:
        axes: the axes to try.
        model: the whole module, and the batch to run it with.
        build: builds a smaller module.
    """
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.width or axis.fields or axis.name, []).append(axis)
    failures: list[str] = []
    kept = _working_groups(list(groups.values()), model, build, failures)
    names = {axis.name for group in kept for axis in group}
    return tuple(axis for axis in axes if axis.name in names), tuple(failures)


def _working_groups(
    groups: list[list[Axis]], model: LoadedModel, build: BuildCut, failures: list[str]
) -> list[list[Axis]]:
    if not groups:
        return []
    axes = [axis for group in groups for axis in group]
    problem = cut_problem(axes, removed_part(axes), model, build)
    if problem is None:
        return groups
    if len(groups) == 1:
        failures.append(f"{axes[0].name}: {problem}")
        return []
    half = len(groups) // 2
    return [
        *_working_groups(groups[:half], model, build, failures),
        *_working_groups(groups[half:], model, build, failures),
    ]


def removed_part(axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Return units to keep for a trial: about half of each axis, or all but one layer.

    Axes with equal fields or one width are cut in the same proportion.
    """
    kept = {}
    common: dict[object, int] = {}
    for axis in axes:
        key = axis.width or axis.fields or axis.name
        common[key] = gcd(common.get(key, 0), axis.units)
    for axis in axes:
        units = common[axis.width or axis.fields or axis.name]
        per_unit = axis.units // units
        half = units // 2 * per_unit // axis.group * axis.group
        removed = per_unit if axis.stack else max(half, per_unit, axis.group)
        # Neither the first nor the last units, so that shifted ones are noticed.
        start = (axis.units - removed + 1) // 2
        unit = torch.arange(axis.units)
        kept[axis.name] = unit[(unit < start) | (unit >= start + removed)]
    return kept


def cut_problem(
    axes: Sequence[Axis],
    kept_units: Mapping[str, Tensor],
    model: LoadedModel,
    build: BuildCut,
) -> str | None:
    """Return the difference between a cut module and the masked one; None if there is none.

    Args:
        axes: the axes that are cut.
        kept_units: axis name to the units to keep.
        model: the whole module, and the batch to run it with.
        build: builds the cut module.
    """
    state = {name: tensor.detach() for name, tensor in model.module.state_dict().items()}
    weights = dict(remove_units(state, axes, kept_units))
    sizes = {name: len(units) for name, units in kept_units.items()}
    try:
        smaller = build(sizes, weights).eval()
        with torch.no_grad():
            found = float_tensors(smaller(**model.batch))
    except Exception as error:  # noqa: BLE001  any code of the module's may depend on its sizes
        return f"the smaller module does not run: {_first_line(error)}"
    try:
        with torch.no_grad(), masked(model.module, axes, kept_units):
            expected = float_tensors(model.module(**model.batch))
    except Exception as error:  # noqa: BLE001  what layers return need not be what they take
        return f"the masked module does not run: {_first_line(error)}"
    return _difference(found, expected)


def _first_line(error: Exception) -> str:
    """Return the first line of a message, or the name of its class."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "its outputs have other shapes"
    for one, other in zip(found, expected, strict=True):
        finite = torch.isfinite(other)
        if not torch.equal(finite, torch.isfinite(one)):
            return "its outputs are not finite"
        one, other = one[finite].double(), other[finite].double()
        if not one.numel():
            continue
        is_half = torch.finfo(found[0].dtype).bits < torch.finfo(torch.float32).bits
        limit = (_HALF_TOLERANCE if is_half else _TOLERANCE) * float(other.abs().max())
        if (difference := float((one - other).abs().max())) > limit + 1e-6:
            return f"its outputs differ by {difference:.2g}"
    return None


def float_tensors(outputs: Any) -> list[Tensor]:
    """Return the float tensors of a result, at any depth of tuples and mappings."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    members: Sequence[Any] = ()
    if isinstance(outputs, Mapping):
        members = list(outputs.values())
    elif isinstance(outputs, list | tuple):
        members = outputs
    return [tensor for member in members for tensor in float_tensors(member)]


@contextmanager
def masked(
    module: nn.Module, axes: Sequence[Axis], kept_units: Mapping[str, Tensor]
) -> Iterator[None]:
    """Take away the effect of units within the block, with the module's own shapes.

    Columns that read them are zero, and layers return their input.
    """
    state = module.state_dict()
    saved: dict[str, Tensor] = {}
    handles = []
    try:
        for axis in axes:
            kept = set(kept_units[axis.name].tolist())
            removed = [unit for unit in range(axis.units) if unit not in kept]
            for member in axis.members(removed) if axis.stack else ():
                layer = module.get_submodule(f"{axis.stack}.{member}")
                handles.append(layer.register_forward_hook(_skip, with_kwargs=True))
            for cut in axis.cuts:
                if cut.reads:
                    tensor = state[cut.tensor]
                    saved.setdefault(cut.tensor, tensor.clone())
                    indices = kept_indices(torch.tensor(removed), cut, axis.units)
                    tensor.index_fill_(cut.dim, indices.to(tensor.device), 0)
        yield
    finally:
        for name, tensor in saved.items():
            state[name].copy_(tensor)
        for handle in handles:
            handle.remove()


def _skip(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    return skipped(args, kwargs, output)


def skipped(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Return a layer's output with its first tensor replaced by the layer's first input."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if isinstance(output, tuple):
        return (tensors[0], *output[1:])
    return tensors[0]
