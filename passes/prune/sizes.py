"""How large each width becomes: as stated, or as the target asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.models.axes import Field
from compressor.models.contract import Family
from passes.prune.allocation import Width, allocate
from passes.prune.step import Target

_BYTES_PER_WEIGHT = 4
"""Where nothing else is told, models are saved in float32."""

Fields = dict[Field, int | bool | list[Any]]


def sizes_for(
    target: Target,
    family: Family[Any],
    architecture: Record,
    widths: tuple[Width, ...],
    milliseconds: Callable[[Mapping[str, int]], float] | None,
) -> dict[str, int]:
    """Units that each width keeps, by its label.

    Raises:
        RequirementError: the target cannot be met; or stated dimensions are none, too large, or do not fit together.
    """
    if target.dimensions is not None:
        sizes = _stated_sizes(target.dimensions, widths)
        try:
            family.resized(architecture, fields_of(widths, sizes, architecture))
        except ValidationError as error:
            told = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
            raise RequirementError(f"these dimensions do not fit together: {told}") from error
        return sizes

    def counted(count: Callable[[Family[Any], Record], int], scale: float) -> Callable[[Mapping[str, int]], float]:
        def cost(kept: Mapping[str, int]) -> float:
            try:
                smaller = family.resized(architecture, fields_of(widths, kept, architecture))
            except ValidationError:  # the architecture has no such size
                return math.inf
            return scale * count(family, smaller)

        return cost

    costs = {
        "macs": counted(macs, 1),
        "params": counted(parameters, 1),
        "size_mb": counted(parameters, _BYTES_PER_WEIGHT / 1e6),
        "latency_ms": milliseconds,
    }
    whole = {width.label: width.units for width in widths}
    for name, cost in costs.items():
        if cost is not None and (limit := target.limit(name, cost(whole))) is not None:
            return allocate(widths, cost, limit, name)
    raise AssertionError("a target names one of these")


def _stated_sizes(dimensions: Mapping[str, int], widths: tuple[Width, ...]) -> dict[str, int]:
    """The sizes that the user states, each checked; all problems at once."""
    known = {name: (width, factor) for width in widths for name, factor in width.dimensions().items()}
    problems = []
    sizes = {width.label: width.units for width in widths}
    stated: dict[str, str] = {}
    for name, size in dimensions.items():
        if name not in known:
            problems.append(f"{name} is no dimension here: {discovery.suggestion(name, list(known))}")
            continue
        width, factor = known[name]
        if size % factor or not 0 < size // factor <= width.units:
            steps = f", in steps of {factor}" if factor > 1 else ""
            problems.append(f"{name}: {size} is not between {factor} and {width.units * factor}{steps}")
            continue
        if width.label in stated and sizes[width.label] != size // factor:
            other, wanted = stated[width.label], size // factor * known[stated[width.label]][1]
            problems.append(
                f"{name}: {size} goes with {other}: {wanted}, not {dimensions[other]}; they shrink together"
            )
            continue
        sizes[width.label], stated[width.label] = size // factor, name
    if problems:
        raise RequirementError("; ".join(problems), remedy=f"dimensions of this model: {', '.join(known)}")
    return sizes


def fields_of(
    widths: tuple[Width, ...],
    sizes: Mapping[str, int],
    architecture: Record,
    kept: Mapping[str, list[int]] | None = None,
) -> Fields:
    """What the config has to say of the widths that are cut.

    Args:
        widths: all of them.
        sizes: units that each keeps.
        architecture: the config as it is.
        kept: axis name to the units that stay, where they are chosen: lists in the config keep their entries, else the first.
    """
    fields: Fields = {}
    for width in (width for width in widths if sizes[width.label] < width.units):
        for axis in width.axes:
            units = width.of(axis, sizes[width.label])
            fields |= {path: units * factor for path, factor in axis.fields}
            fields |= dict(axis.stated)
            chosen = kept[axis.name] if kept is not None else range(units)
            for path in axis.listed:
                node: Any = architecture.model_dump(mode="json")
                for part in path:
                    node = node[part]
                fields[path] = [node[unit] for unit in chosen]
    return fields


def macs(family: Family[Any], config: Record) -> int:
    """Multiply-accumulates of one sample, or token."""
    return family.macs(config)


def parameters(family: Family[Any], config: Record) -> int:
    """Of the whole model."""
    return sum(family.parameters(config).values())
