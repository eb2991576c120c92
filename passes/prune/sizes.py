"""How large each width becomes: as stated, or as the target asks; at the end, and after each round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Field, replace_fields
from compressor.models.contract import Family
from passes.prune.allocation import Array, Cost, Width, allocate, towards
from passes.prune.schedule import Stage, only_below
from passes.prune.step import Schedule, Target

_BYTES_PER_WEIGHT = 4
"""Where nothing else is told, models are saved in float32."""

Fields = dict[Field, int | bool | list[Any] | None]


@dataclass(frozen=True, slots=True)
class Start:
    """What later rounds have to know of the parent."""

    units: Mapping[str, int]
    """Label of a width to its units."""
    cost: float | None
    """In the target's measure; None for stated dimensions."""
    milliseconds: float | None
    """Of all operators together, where they are timed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What sizes are chosen from: a model, its widths, and what it costs to keep some of them."""

    family: Family[Any]
    architecture: Record
    widths: tuple[Width, ...]
    target: Target
    milliseconds: Cost | None
    ranked: Mapping[str, list[int]]
    """Axis name to its units, the most important first."""

    def cost(self) -> Cost | None:
        """The target's measure; None for stated dimensions."""
        costs = {
            "macs": self._counted(macs, 1),
            "params": self._counted(parameters, 1),
            "size_mb": self._counted(parameters, _BYTES_PER_WEIGHT / 1e6),
            "latency_ms": self.milliseconds,
            "dimensions": None,
        }
        return costs[self.target.given]

    def _counted(self, count: Callable[[Family[Any], Record], int], scale: float) -> Cost:
        def cost(kept: Mapping[str, int]) -> float:
            try:
                smaller = self.resized(kept)
            except ValidationError:  # the architecture has no such size
                return math.inf
            return scale * count(self.family, smaller)

        return cost

    def chosen(self, sizes: Mapping[str, int], *, told: bool = False) -> dict[str, list[int]]:
        """Of each axis that is cut, the units that stay, rising; with ``told``, only where the config tells which they are."""
        return {
            axis.name: sorted(self.ranked[axis.name][: width.of(axis, sizes[width.label])])
            for width in self.widths
            if sizes[width.label] < width.units
            for axis in width.axes
            if not told or axis.entries or axis.listed
        }

    def resized(self, sizes: Mapping[str, int]) -> Record:
        """The config of what stays.

        Raises:
            ValidationError: the architecture has no such size.
        """
        fields = fields_of(self.widths, sizes, self.architecture, self.chosen(sizes, told=True))
        smaller: Record = replace_fields(self.architecture, fields)
        return smaller

    def start(self) -> Start:
        """Of the model as it is."""
        units = units_of_widths(self.widths)
        cost = self.cost()
        milliseconds = None if self.milliseconds is None else self.milliseconds(units)
        return Start(units, None if cost is None else cost(units), milliseconds)

    def final(self, start: Start) -> dict[str, int]:
        """Units that each width keeps, by its label, when the target is met.

        Raises:
            RequirementError: the target cannot be met; or stated dimensions are none, too large, or do not fit together.
        """
        cost = self.cost()
        if cost is not None:
            return allocate(self.widths, cost, self._limit(start), self.target.given)
        sizes = _stated_sizes(self.target.dimensions or {}, self.widths)
        try:
            self.resized(sizes)
        except ValidationError as error:
            told = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
            raise RequirementError(f"these dimensions do not fit together: {told}") from error
        return sizes

    def after(
        self, stage: Stage, schedule: Schedule, start: Start, scores: Mapping[str, Array]
    ) -> dict[str, int]:
        """Units that each width keeps after a round that is not the last."""
        cost = self.cost()
        threshold = schedule.rule == "threshold"
        widths = only_below(self.widths, scores, schedule.threshold) if threshold else self.widths
        if cost is not None:
            limit = self._limit(start)
            return towards(
                widths, cost, limit if threshold else stage.limit(float(start.cost or 0), limit)
            )[0]
        final = _stated_sizes(self.target.dimensions or {}, self.widths)
        if threshold:
            sizes = {width.label: max(final[width.label], width.least) for width in widths}
        else:
            sizes = {label: stage.size(start.units[label], size) for label, size in final.items()}
        try:
            self.resized(sizes)
        except ValidationError:  # the architecture has no such size: a later round goes on
            return units_of_widths(self.widths)
        return sizes

    def _limit(self, start: Start) -> float:
        limit = self.target.limit(self.target.given, float(start.cost or 0))
        assert limit is not None  # noqa: S101 - the target's own measure
        return limit


def units_of_widths(widths: Sequence[Width]) -> dict[str, int]:
    """Label to units: everything stays."""
    return {width.label: width.units for width in widths}


def _stated_sizes(dimensions: Mapping[str, int], widths: tuple[Width, ...]) -> dict[str, int]:
    """The sizes that the user states, each checked; all problems at once."""
    known = {
        name: (width, factor) for width in widths for name, factor in width.dimensions().items()
    }
    problems = []
    sizes = {width.label: width.units for width in widths}
    stated: dict[str, str] = {}
    for name, size in dimensions.items():
        if name not in known:
            problems.append(
                f"{name} is no dimension here: {discovery.suggestion(name, list(known))}"
            )
            continue
        width, factor = known[name]
        if size % factor or not 0 < size // factor <= width.units:
            steps = f", in steps of {factor}" if factor > 1 else ""
            problems.append(
                f"{name}: {size} is not between {factor} and {width.units * factor}{steps}"
            )
            continue
        if width.label in stated and sizes[width.label] != size // factor:
            other, wanted = stated[width.label], size // factor * known[stated[width.label]][1]
            problems.append(
                f"{name}: {size} goes with {other}: {wanted}, not {dimensions[other]}; they shrink together"
            )
            continue
        sizes[width.label], stated[width.label] = size // factor, name
    if problems:
        raise RequirementError(
            "; ".join(problems), remedy=f"dimensions of this model: {', '.join(known)}"
        )
    return sizes


def fields_of(
    widths: tuple[Width, ...],
    sizes: Mapping[str, int],
    architecture: Record,
    kept: Mapping[str, list[int]],
) -> Fields:
    """What the config has to say of the widths that are cut.

    Args:
        widths: all of them.
        sizes: units that each keeps.
        architecture: the config as it is.
        kept: of each axis that is cut and has something in the config for each unit, by its name, the units that stay.
    """
    fields: Fields = {}
    for width in (width for width in widths if sizes[width.label] < width.units):
        for axis in width.axes:
            units = width.of(axis, sizes[width.label])
            fields |= {path: units * factor for path, factor in axis.fields}
            fields |= dict(axis.stated)
            fields |= {
                path: None for unit, path in enumerate(axis.entries) if unit not in kept[axis.name]
            }
            for path in axis.listed:
                node: Any = architecture.model_dump(mode="json")
                for part in path:
                    node = node[part]
                fields[path] = [node[unit] for unit in kept[axis.name]]
    return fields


def macs(family: Family[Any], config: Record) -> int:
    """Multiply-accumulates of one sample, or token."""
    return family.macs(config)


def parameters(family: Family[Any], config: Record) -> int:
    """Of the whole model."""
    return sum(family.parameters(config).values())
