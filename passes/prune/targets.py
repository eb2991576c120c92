"""What a target allows: how many units each width keeps, at the end and after each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.config import discovery
from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.models.axes import Field
from compressor.models.contract import Family
from passes.prune.allocation import Array, Cost, Width, allocate, towards
from passes.prune.schedule import Stage, only_below
from passes.prune.step import Schedule, Target

_BYTES_PER_WEIGHT = 4
"""Models are saved in float32."""


@dataclass(frozen=True, slots=True)
class Start:
    """What later rounds have to know of the parent."""

    units: Mapping[str, int]
    """Label of a width to its units."""
    cost: float | None
    """In the target's measure; None for stated dimensions."""
    milliseconds: float | None
    """Of all operators together, where they are timed."""


def cost_of(
    target: Target, family: Family[Any], config: Record, widths: tuple[Width, ...], milliseconds: Cost | None
) -> Cost | None:
    """The target's measure, of the model whose widths are cut; None for stated dimensions."""

    def counted(count: Callable[[Family[Any], Record], int], scale: float = 1) -> Cost:
        def cost(kept: Mapping[str, int]) -> float:
            return scale * count(family, family.resized(config, fields_of(widths, kept)))

        return cost

    costs = {
        "macs": counted(macs_of),
        "params": counted(parameters_of),
        "size_mb": counted(parameters_of, _BYTES_PER_WEIGHT / 1e6),
        "latency_ms": milliseconds,
        "dimensions": None,
    }
    return costs[target.given]


def sizes_of(target: Target, start: Start, widths: tuple[Width, ...], cost: Cost | None) -> dict[str, int]:
    """Units that each width keeps when the target is met.

    Raises:
        RequirementError: it cannot be met, or names dimensions that are not there.
    """
    if cost is None:
        return _stated_sizes(target.dimensions or {}, widths)
    return allocate(widths, cost, _limit(target, start), target.given)


def sizes_after(
    stage: Stage,
    schedule: Schedule,
    target: Target,
    start: Start,
    widths: tuple[Width, ...],
    scores: Mapping[str, Array],
    cost: Cost | None,
) -> dict[str, int]:
    """Units that each width keeps after a round that is not the last."""
    threshold = schedule.rule == "threshold"
    if threshold:
        widths = only_below(widths, scores, schedule.threshold)
    if cost is None:
        final = _stated_sizes(target.dimensions or {}, widths)
        if threshold:
            return {width.label: max(final[width.label], width.least) for width in widths}
        return {label: stage.size(start.units[label], size) for label, size in final.items()}
    limit = _limit(target, start)
    return towards(widths, cost, limit if threshold else stage.limit(float(start.cost or 0), limit))[0]


def _limit(target: Target, start: Start) -> float:
    limit = target.limit(target.given, float(start.cost or 0))
    assert limit is not None  # noqa: S101 - the target's own measure
    return limit


def _stated_sizes(dimensions: Mapping[str, int], widths: tuple[Width, ...]) -> dict[str, int]:
    """The sizes that the user states, each checked; all problems at once."""
    known = {width.label: width for width in widths}
    problems = []
    sizes = {label: width.units for label, width in known.items()}
    for label, size in dimensions.items():
        if label not in known:
            problems.append(f"{label} is no dimension here: {discovery.suggestion(label, list(known))}")
            continue
        factor = known[label].axes[0].fields[0][1]
        if size % factor or not 0 < size // factor <= known[label].units:
            whole_groups = f", in steps of {factor}: heads go by whole key groups" if factor > 1 else ""
            problems.append(f"{label}: {size} is not between {factor} and {known[label].units * factor}{whole_groups}")
            continue
        sizes[label] = size // factor
    if problems:
        raise RequirementError("; ".join(problems), remedy=f"dimensions of this model: {', '.join(known)}")
    return sizes


def fields_of(widths: tuple[Width, ...], sizes: Mapping[str, int]) -> dict[Field, int | bool]:
    """What the config has to say of the widths that are cut."""
    fields: dict[Field, int | bool] = {}
    for width in widths:
        if sizes[width.label] == width.units:
            continue
        for axis in width.axes:
            fields |= {path: sizes[width.label] * factor for path, factor in axis.fields}
            fields |= dict(axis.stated)
    return fields


def macs_of(family: Family[Any], config: Record) -> int:
    """Multiply-accumulates of one sample."""
    return family.macs(config)


def parameters_of(family: Family[Any], config: Record) -> int:
    """All parameters."""
    return sum(family.parameters(config).values())
