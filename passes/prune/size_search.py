"""Search for the size of each width that meets the target, at the end and after each round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import FieldPath, replace_fields
from compressor.models.contract import Family
from passes.prune.allocation import (
    Array,
    Cost,
    Report,
    Width,
    all_units,
    allocate,
    allocate_towards,
    report_nothing,
)
from passes.prune.config import ScheduleConfig, Target
from passes.prune.schedule import Round, protect_high_scores

_BYTES_PER_WEIGHT = 4
"""Weights are counted in float32, in which models are saved by default."""
_MOST_TRIALS = 8
"""Searches until a limit is met."""

Count = Callable[[Family[Any], Record], int]
Fields = dict[FieldPath, int | float | bool | list[Any] | dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class ParentSize:
    """Size of the parent, which all rounds refer to."""

    units: Mapping[str, int]
    """Units of each width by label."""
    cost: float | None
    """Value of the target's measure; None for a target of dimensions."""
    milliseconds: float | None
    """Time of all operators; None if they are not timed."""


@dataclass(frozen=True, slots=True)
class SizeSearch:
    """A model with its widths and target, from which sizes are chosen.

    Sizes are the units kept of each width, by label.
    """

    family: Family[Any]
    architecture: Record
    widths: tuple[Width, ...]
    target: Target
    milliseconds: Cost | None
    """Time of all operators for given sizes; None if they are not timed."""
    ranking: Mapping[str, Sequence[int]]
    """Axis name to its units, the most important first."""
    measured: Mapping[Count, Cost] = field(default_factory=dict)
    """Counts that are known as functions of sizes, for models that take long to build."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of tensors, for axes that the config describes by them."""
    report: Report = report_nothing
    """Called as the search advances."""

    def cost(self) -> Cost | None:
        """Return the target's measure as a function of sizes; None for a target of dimensions."""
        costs = {
            "macs": self._counted("macs"),
            "params": self._counted("params"),
            "size_mb": self._counted("size_mb"),
            "latency_ms": self.milliseconds,
            "dimensions": None,
        }
        return costs[self.target.measure]

    def _counted(self, measure: str) -> Cost:
        """Return a measure as a function of sizes, as the family counts it."""
        count, scale = _COUNTED[measure]
        known = self.measured.get(count)
        if known is not None:
            return lambda sizes: scale * known(sizes)

        def cost(sizes: Mapping[str, int]) -> float:
            try:
                smaller = self.pruned_config(sizes)
            except ValidationError:  # The architecture does not allow this size.
                return math.inf
            return scale * count(self.family, smaller)

        return cost

    def kept_units(
        self, sizes: Mapping[str, int], *, listed_only: bool = False
    ) -> dict[str, list[int]]:
        """Return the units to keep of each axis that is cut, by name, in increasing order.

        Args:
            sizes: the sizes.
            listed_only: True for only those axes whose units are listed in the config.
        """
        return {
            axis.name: sorted(self.ranking[axis.name][: width.axis_units(axis, sizes[width.label])])
            for width in self.widths
            if sizes[width.label] < width.units
            for axis in width.axes
            if not listed_only or axis.unit_entries or axis.unit_lists
        }

    def pruned_config(self, sizes: Mapping[str, int]) -> Record:
        """Return the config of the model with given sizes.

        Raises:
            ValidationError: the architecture does not allow these sizes.
        """
        kept_units = self.kept_units(sizes, listed_only=True)
        fields = pruned_fields(self.widths, sizes, self.architecture, kept_units)
        fields |= self._changed_shapes(sizes)
        return replace_fields(self.architecture, fields)

    def _changed_shapes(self, sizes: Mapping[str, int]) -> Fields:
        """Return the fields with shapes, of axes that the config describes by them."""
        changed: dict[str, dict[str, list[int]]] = {}
        for width in self.widths:
            for axis in (axis for axis in width.axes if axis.shapes_field):
                removed = axis.units - width.axis_units(axis, sizes[width.label])
                for cut in axis.cuts if removed else ():
                    known = changed.setdefault(axis.shapes_field, {})
                    shape = known.setdefault(cut.tensor, list(self.shapes[cut.tensor]))
                    shape[cut.dim] -= removed * cut.block * cut.segments
        tree = self.architecture.model_dump(mode="json")
        return {(name,): {**tree[name], **shapes} for name, shapes in changed.items()}

    def parent_size(self) -> ParentSize:
        """Return the size of the model as it is."""
        units = all_units(self.widths)
        cost = self.cost()
        milliseconds = None if self.milliseconds is None else self.milliseconds(units)
        return ParentSize(units, None if cost is None else cost(units), milliseconds)

    def final_sizes(self, parent: ParentSize) -> dict[str, int]:
        """Return sizes that meet the target.

        Raises:
            RequirementError: the target cannot be met, or its dimensions are unknown, too large, or
                do not fit together.
        """
        cost = self.cost()
        if cost is not None:
            return self._allocated(cost, self._limit(parent))
        sizes = stated_sizes(self.target.dimensions or {}, self.widths)
        try:
            self.pruned_config(sizes)
        except ValidationError as error:
            reasons = "; ".join(
                problem["msg"].removeprefix("Value error, ") for problem in error.errors()
            )
            raise RequirementError(f"these dimensions do not fit together: {reasons}") from error
        return sizes

    def _allocated(self, cost: Cost, limit: float) -> dict[str, int]:
        """Return sizes that meet a limit also as the family counts them.

        Costs from shapes alone may leave out what shrinks too, or does not, such as attention.
        """
        measure = self.target.measure
        lowered = limit
        for _ in range(_MOST_TRIALS):
            sizes = allocate(self.widths, cost, lowered, measure, self.report)
            if not self.measured or measure not in _COUNTED:
                break
            count, scale = _COUNTED[measure]
            counted = scale * count(self.family, self.pruned_config(sizes))
            if counted <= limit:
                break
            lowered *= limit / counted
        return sizes

    def round_sizes(
        self,
        round_: Round,
        schedule: ScheduleConfig,
        parent: ParentSize,
        scores: Mapping[str, Array],
    ) -> dict[str, int]:
        """Return the sizes after a round that is not the last.

        Args:
            round_: the round.
            schedule: the rule.
            parent: the size of the parent.
            scores: axis name to the importance of its units.
        """
        cost = self.cost()
        if schedule.rule == "threshold":
            widths = protect_high_scores(self.widths, scores, schedule.threshold)
            if cost is not None:
                return allocate_towards(widths, cost, self._limit(parent), self.report)[0]
            final = stated_sizes(self.target.dimensions or {}, self.widths)
            sizes = {width.label: max(final[width.label], width.min_units) for width in widths}
        else:
            if cost is not None:
                limit = round_.limit(float(parent.cost or 0), self._limit(parent))
                return allocate_towards(self.widths, cost, limit, self.report)[0]
            final = stated_sizes(self.target.dimensions or {}, self.widths)
            sizes = {label: round_.size(parent.units[label], size) for label, size in final.items()}
        try:
            self.pruned_config(sizes)
        except ValidationError:  # The architecture does not allow these sizes; a later round cuts.
            return all_units(self.widths)
        return sizes

    def _limit(self, parent: ParentSize) -> float:
        limit = self.target.limit(self.target.measure, float(parent.cost or 0))
        assert limit is not None  # noqa: S101 - it is the target's own measure
        return limit


def stated_sizes(dimensions: Mapping[str, int], widths: Sequence[Width]) -> dict[str, int]:
    """Return the sizes that a target of dimensions states; other widths keep all units.

    Raises:
        RequirementError: dimensions are unknown, out of range, or contradict each other; the
            message lists all of them.
    """
    by_name = {name: (width, unit) for width in widths for name, unit in width.dimensions().items()}
    problems = []
    sizes = all_units(widths)
    stated: dict[str, str] = {}
    for name, size in dimensions.items():
        if name not in by_name:
            suggestion = discovery.suggestion(name, list(by_name))
            problems.append(f"`target.dimensions`: the model has no {name}: {suggestion}")
            continue
        width, unit = by_name[name]
        if size % unit or not 0 < size // unit <= width.units:
            steps = f", in steps of {unit}" if unit > 1 else ""
            problems.append(f"{name}: {size} is not between {unit} and {width.units * unit}{steps}")
            continue
        if width.label in stated and sizes[width.label] != size // unit:
            coupled = stated[width.label]
            problems.append(
                f"{name}: {size} requires {coupled}: {size // unit * by_name[coupled][1]}, not "
                f"{dimensions[coupled]}; they shrink together"
            )
            continue
        sizes[width.label], stated[width.label] = size // unit, name
    if problems:
        raise RequirementError(
            "; ".join(problems), remedy=f"dimensions of this model: {', '.join(by_name)}"
        )
    return sizes


def pruned_fields(
    widths: Iterable[Width],
    sizes: Mapping[str, int],
    architecture: Record,
    kept_units: Mapping[str, Sequence[int]],
) -> Fields:
    """Return the config fields of a pruned model, for ``replace_fields``.

    Args:
        widths: all widths.
        sizes: units to keep of each width, by label.
        architecture: the config before the cut.
        kept_units: axis name to the units to keep, of each axis that is cut and whose units the
            config lists.
    """
    fields: Fields = {}
    for width in (width for width in widths if sizes[width.label] < width.units):
        for axis in width.axes:
            units = width.axis_units(axis, sizes[width.label])
            fields |= axis.field_values(units)
            fields |= dict(axis.pinned)
            fields |= {
                path: None
                for unit, path in enumerate(axis.unit_entries)
                if unit not in kept_units[axis.name]
            }
            for path in axis.unit_lists:
                node: Any = architecture.model_dump(mode="json")
                for part in path:
                    node = node[part]
                fields[path] = [node[unit] for unit in kept_units[axis.name]]
    return fields


def count_macs(family: Family[Any], config: Record) -> int:
    """Return the multiply-accumulates of one sample, or one token."""
    return family.macs(config)


def count_parameters(family: Family[Any], config: Record) -> int:
    """Return the number of parameters of the whole model."""
    return sum(family.parameters(config).values())


_COUNTED: Mapping[str, tuple[Count, float]] = {
    "macs": (count_macs, 1),
    "params": (count_parameters, 1),
    "size_mb": (count_parameters, _BYTES_PER_WEIGHT / 1e6),
}
"""Measures of a target to what counts them, and the unit of a count."""
