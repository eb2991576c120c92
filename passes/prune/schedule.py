"""Sizes and training steps of the rounds of a schedule. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from passes.prune.allocation import Array, Width


@dataclass(frozen=True, slots=True)
class Round:
    """One round of cutting and training; by default the only one."""

    number: int = 1
    """Number of the round, from 1."""
    count: int = 1
    """Number of all rounds."""

    @property
    def first(self) -> bool:
        """True if nothing has been cut before."""
        return self.number == 1

    @property
    def last(self) -> bool:
        """True if the round must meet the target."""
        return self.number == self.count

    @property
    def remaining(self) -> float:
        """Distance to the target after round r of N, (1 − r/N)³ of the initial one.

        The cubic schedule is that of Zhu & Gupta 2017.
        """
        return (1 - self.number / self.count) ** 3

    def limit(self, parent: float, target: float) -> float:
        """Return the largest cost of the model after the round."""
        return target + (parent - target) * self.remaining

    def size(self, parent: int, target: int) -> int:
        """Return the units of a width after the round."""
        return target + math.ceil((parent - target) * self.remaining)

    def steps(self, total: int) -> range:
        """Return the training steps of the round out of ``total`` steps of all rounds."""
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


def protect_high_scores(
    widths: Sequence[Width], scores: Mapping[str, Array], threshold: float
) -> tuple[Width, ...]:
    """Raise the units to keep of each width so that only units with low scores may be cut.

    Args:
        widths: the widths that may be cut.
        scores: axis name to the importance of its units.
        threshold: fraction of an axis' largest score below which a unit may be cut. Axes of one
            width are cut in proportion, as far as the axis with the fewest such units allows.
    """
    protected = []
    for width in widths:
        low_units = min(
            int((scores[axis.name] < threshold * scores[axis.name].max()).sum())
            // width.axis_units(axis, 1)
            for axis in width.axes
        )
        min_units = min(width.units, max(width.min_units, width.units - low_units))
        protected.append(replace(width, min_units=min_units))
    return tuple(protected)
