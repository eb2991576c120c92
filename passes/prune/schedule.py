"""How far each round of a gradual schedule goes. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from passes.prune.allocation import Array, Width


@dataclass(frozen=True, slots=True)
class Stage:
    """A round of several that lead to the target; by default the only one."""

    number: int = 1
    """From 1."""
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether nothing is cut yet."""
        return self.number == 1

    @property
    def last(self) -> bool:
        """Whether the target has to be met now."""
        return self.number == self.count

    @property
    def left(self) -> float:
        """The part of the way to the target that is left after this round: (1 − r/N)³ (Zhu & Gupta 2017)."""
        return (1 - self.number / self.count) ** 3

    def limit(self, whole: float, target: float) -> float:
        """What the model may cost after this round, where the parent costs ``whole``."""
        return target + (whole - target) * self.left

    def size(self, whole: int, target: int) -> int:
        """The units that a width keeps after this round, where the parent has ``whole``."""
        return target + math.ceil((whole - target) * self.left)

    def steps(self, total: int) -> range:
        """The training steps of this round, of ``total`` over all."""
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


def only_below(
    widths: Sequence[Width], scores: Mapping[str, Array], threshold: float
) -> tuple[Width, ...]:
    """The widths, of which only units may go whose score is below ``threshold`` times the largest of their axis.

    Axes of one width go in proportion: as far as the one that has the fewest of them.
    """
    narrowed = []
    for width in widths:
        weak = min(
            int((scores[axis.name] < threshold * scores[axis.name].max()).sum())
            // width.of(axis, 1)
            for axis in width.axes
        )
        narrowed.append(
            replace(width, least=min(width.units, max(width.least, width.units - weak)))
        )
    return tuple(narrowed)
