"""How many units each width keeps: the least importance lost for what is saved, until the target is met. Plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
_CLEARLY = 1 - 1e-9
"""Of cuts that are as good, the smallest."""


@dataclass(frozen=True, slots=True)
class Width:
    """Axes that are cut in proportion: one field of the config counts their units, or the architecture ties them."""

    label: str
    axes: tuple[Axis, ...]
    units: int
    """Steps in which the axes can go together: of an axis, ``axis.units / units`` units at a time."""
    lost: Array
    """[units + 1]: the importance that goes with the k least important parts of every axis."""
    step: int
    """Units go this many at a time."""
    least: int
    """Units that stay."""

    def of(self, axis: Axis, kept: int) -> int:
        """Units of the axis where the width keeps ``kept``."""
        return axis.units // self.units * kept

    def dimensions(self) -> dict[str, int]:
        """The names that users have for it, and how much each counts for one unit."""
        return {axis.label: self.of(axis, 1) * axis.factor for axis in self.axes}


def widths_of(
    axes: Sequence[Axis],
    scores: Mapping[str, Array],
    *,
    multiple: int,
    min_keep: float,
    whole: Mapping[str, int] | None = None,
) -> tuple[Width, ...]:
    """Group axes by their fields, or by the width that they name.

    Args:
        axes: what may be cut.
        scores: axis name to the importance of its units.
        multiple: kept channels, inner and hidden widths are multiples of it; heads and layers go one by one.
        min_keep: the part of the units that stays at least.
        whole: label to the units before the first round, of which some are gone by now.
    """
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.width or axis.fields or axis.name, []).append(axis)
    widths = []
    for members in groups.values():
        units = min(axis.units for axis in members)
        step = 1 if any(axis.kind in {"heads", "layers"} for axis in members) else multiple
        label = members[0].width or members[0].label
        before = (whole or {}).get(label, units)
        least = max(1, -(-int(np.ceil(before * min_keep)) // step) * step)
        lost = sum(
            np.concatenate([[0.0], np.sort(scores[axis.name]).cumsum()])[:: axis.units // units]
            for axis in members
        )
        widths.append(
            Width(label, tuple(members), units, np.asarray(lost), step, min(least, units))
        )
    return tuple(widths)


Cost = Callable[[Mapping[str, int]], float]
"""The units that each width keeps, by its label, to what such a model costs."""


def allocate(widths: Sequence[Width], cost: Cost, limit: float, what: str) -> dict[str, int]:
    """Units that each width keeps, by its label, so that ``cost`` is at most ``limit``.

    Raises:
        RequirementError: the limit cannot be reached; it says how far one can get.
    """
    kept, now = towards(widths, cost, limit)
    if now > limit:
        start = cost({width.label: width.units for width in widths})
        raise RequirementError(
            f"the target is {_figure(limit)} {what} of {_figure(start)}; no further cut saves anything at {_figure(now)}",
            remedy=f"ask for {now / start:.2f} or more, lower `min_keep` or `multiple`, or let more `axes` be cut",
        )
    return kept


def towards(widths: Sequence[Width], cost: Cost, limit: float) -> tuple[dict[str, int], float]:
    """Cut until ``cost`` is at most ``limit``, or as far as the widths go; the units kept, and their cost.

    Greedy: each time the cut, of one step or of several, that loses the least importance for what it saves. Several, because the
    next step alone may save nothing, or be slower, where the one after it is faster.
    """
    kept = {width.label: width.units for width in widths}
    now = cost(kept)
    while now > limit:
        best: tuple[float, str, int, float] | None = None
        for width in widths:
            here = kept[width.label]
            for smaller in range(
                (here - 1) // width.step * width.step, width.least - 1, -width.step
            ):
                saved = now - cost({**kept, width.label: smaller})
                lost = float(width.lost[width.units - smaller] - width.lost[width.units - here])
                if saved > 0 and (best is None or lost / saved < best[0] * _CLEARLY):
                    best = (lost / saved, width.label, smaller, saved)
        if best is None:
            break
        _, label, smaller, saved = best
        kept[label] = smaller
        now -= saved
    return kept, now


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.4g}"
