"""Allocation of units to widths, to meet a limit at the least loss of importance. Plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np

from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
_TIE = 1 - 1e-9
"""Ratio below which a cut is better than another; of equally good cuts the smallest is taken."""


@dataclass(frozen=True, slots=True)
class Width:
    """Axes that are cut in the same proportion.

    Either one config field counts the units of all of them, or the architecture couples them.
    """

    label: str
    axes: tuple[Axis, ...]
    units: int
    """Number of units. One unit stands for ``axis.units / units`` units of each axis."""
    lost_importance: Array
    """Importance lost if the k least important units of every axis are cut, float64 [units + 1]."""
    multiple: int
    """Kept units are a multiple of this number."""
    min_units: int
    """Smallest number of units to keep."""

    def axis_units(self, axis: Axis, width_units: int) -> int:
        """Return the units of an axis to keep if the width keeps ``width_units``."""
        return axis.units // self.units * width_units

    def dimensions(self) -> dict[str, int]:
        """Return the names of the width's dimensions, and the size of one unit in each."""
        return {axis.label: self.axis_units(axis, 1) * axis.factor for axis in self.axes}


def group_axes(
    axes: Sequence[Axis],
    scores: Mapping[str, Array],
    *,
    multiple: int,
    min_keep: float,
    parent_units: Mapping[str, int] | None = None,
) -> tuple[Width, ...]:
    """Group axes into widths, by the width that they name or by their config fields.

    Args:
        axes: the axes that may be cut.
        scores: axis name to the importance of its units.
        multiple: number that kept channels, inner and hidden widths are a multiple of; heads and
            layers are cut one at a time.
        min_keep: smallest part of the units to keep.
        parent_units: label to the units of the parent, of which ``min_keep`` is a part; by default
            the present units.
    """
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.width or axis.fields or axis.name, []).append(axis)
    widths = []
    for members in groups.values():
        units = gcd(*(axis.units for axis in members))
        step = _step(members, units, multiple)
        label = members[0].width or members[0].label
        initial_units = (parent_units or {}).get(label, units)
        min_units = max(1, -(-int(np.ceil(initial_units * min_keep)) // step) * step)
        lost_importance = sum(
            np.concatenate([[0.0], np.sort(scores[axis.name]).cumsum()])[:: axis.units // units]
            for axis in members
        )
        widths.append(
            Width(
                label,
                tuple(members),
                units,
                np.asarray(lost_importance),
                step,
                min(min_units, units),
            )
        )
    return tuple(widths)


def _step(axes: Sequence[Axis], units: int, multiple: int) -> int:
    """Return the number that kept units of a width are a multiple of.

    A unit may hold several channels, such as a group of a grouped convolution: units are as many
    as make the channels a multiple. Where config fields count groups of units, groups stay whole.
    """
    if any(axis.kind in {"heads", "layers"} for axis in axes):
        return 1
    channels = max(_channels(axis) * axis.units // units for axis in axes)
    groups = (axis.group // gcd(axis.group, axis.units // units) for axis in axes)
    return lcm(multiple // gcd(multiple, channels), *groups)


def _channels(axis: Axis) -> int:
    """Return the channels in one unit of an axis."""
    if axis.fields:
        return axis.factor
    return min((cut.block * cut.segments for cut in axis.cuts), default=1)


def all_units(widths: Sequence[Width]) -> dict[str, int]:
    """Return the units of each width by label."""
    return {width.label: width.units for width in widths}


Cost = Callable[[Mapping[str, int]], float]
"""Maps the units kept of each width, by label, to the cost of the model."""
Report = Callable[[int, int], None]
"""Takes the progress of a search: percent of the cost that is to be saved, and 100."""


def report_nothing(done: int, total: int) -> None:
    """Report no progress."""


def allocate(
    widths: Sequence[Width],
    cost: Cost,
    limit: float,
    measure: str,
    report: Report = report_nothing,
) -> dict[str, int]:
    """Return the units to keep of each width, by label, so that the cost is at most ``limit``.

    Args:
        widths: the widths that may be cut.
        cost: the cost of a model with given units.
        limit: the largest cost.
        measure: what the cost measures, for the error message.
        report: called as the search advances.

    Raises:
        RequirementError: the limit cannot be reached; the message states the smallest cost.
    """
    sizes, reached = allocate_towards(widths, cost, limit, report)
    if reached > limit:
        initial = cost(all_units(widths))
        raise RequirementError(
            f"the target is {_format(limit)} {measure} of {_format(initial)}; "
            f"no further cut saves anything at {_format(reached)}",
            remedy=f"set a target of {reached / initial:.2f} or more, lower `min_keep` or "
            "`multiple`, or add kinds to `axes`",
        )
    return sizes


def allocate_towards(
    widths: Sequence[Width], cost: Cost, limit: float, report: Report = report_nothing
) -> tuple[dict[str, int], float]:
    """Cut until the cost is at most ``limit``, or no cut saves anything.

    The search is greedy: it takes the cut that loses the least importance per cost saved. A cut
    may be several steps of one width, since a single step may save nothing, or even cost more,
    while a larger one saves.

    Returns:
        The units kept by label, and their cost.
    """
    sizes = all_units(widths)
    initial = current = cost(sizes)
    while current > limit:
        best: tuple[float, str, int, float] | None = None
        for width in widths:
            report(int(100 * (initial - current) / (initial - limit)), 100)
            units = sizes[width.label]
            largest = (units - 1) // width.multiple * width.multiple
            for smaller in range(largest, width.min_units - 1, -width.multiple):
                saved = current - cost({**sizes, width.label: smaller})
                lost = float(
                    width.lost_importance[width.units - smaller]
                    - width.lost_importance[width.units - units]
                )
                if saved > 0 and (best is None or lost / saved < best[0] * _TIE):
                    best = (lost / saved, width.label, smaller, saved)
        if best is None:
            break
        _, label, smaller, saved = best
        sizes[label] = smaller
        current -= saved
    return sizes, current


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.4g}"
